"""The academic sets of Qwen's report card as a task pack for lm-evaluation-harness: prompts and scores of the original.

    PYTHONPATH=eval lm_eval --include_path eval/academic_sets --tasks qwen_mmlu --metadata '{"data": "DIR"}' --model ...

Everything is read from local files (files.py says from which); nothing is downloaded. ``metadata`` may also hold
``limit`` (questions per subject, or per set where there are none), ``shard`` ("2/8": the second of eight parts) and
what the single sets name. ``eval/academic.py`` runs the pack and makes the report.
"""
