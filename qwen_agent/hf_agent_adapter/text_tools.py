"""The tools of the 2023 toolbox that read and write text."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from typing import Any

from qwen_agent.errors import ToolError
from qwen_agent.hf_agent_adapter.hub_tool import HubTool, loaded, on_device
from qwen_agent.hf_agent_adapter.languages import LANGUAGE_CODES

_PAGE_BYTES = 10_000_000
_HTML = ("text/html", "application/xhtml+xml")
_CODES = {language.strip().casefold(): code for language, code in LANGUAGE_CODES.items()}


class _Seq2Seq(HubTool):
    """Text in, text out: a tokenizer and an encoder-decoder."""

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        model = loaded(AutoModelForSeq2SeqLM, self.checkpoint, device, dtype)
        return AutoTokenizer.from_pretrained(self.checkpoint), model

    def _written(self, text: str, **options: Any) -> str:
        tokenizer, model = self._loaded()
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        [ids] = model.generate(**on_device(inputs, model), **options)
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


class Summarizer(_Seq2Seq):
    """A summary of an English text."""

    name = "summarizer"
    task = "summarization"
    checkpoint = "philschmid/bart-large-cnn-samsum"
    description = (
        "This is a tool that summarizes an English text. It takes an input `text` containing the text to summarize, "
        "and returns a summary of the text."
    )

    def __call__(self, text: str) -> str:
        return self._written(str(text))


class TextQuestionAnswering(_Seq2Seq):
    """The answer to a question about a text."""

    name = "text_qa"
    task = "text-question-answering"
    checkpoint = "google/flan-t5-base"
    description = (
        "This is a tool that answers questions related to a text. It takes two arguments named `text`, which is the "
        "text where to find the answer, and `question`, which is the question, and returns the answer to the question."
    )

    def __call__(self, text: str, question: str) -> str:
        prompt = (
            f"Here is a text containing a lot of information: '''{text}'''.\n\n"
            f"Can you answer this question about the text: '{question}'"
        )
        return self._written(prompt, max_new_tokens=200)  # the checkpoint itself would stop after 20


class Translator(_Seq2Seq):
    """A translation between any two of the languages of `languages`, by their English names."""

    name = "translator"
    task = "translation"
    checkpoint = "facebook/nllb-200-distilled-600M"
    description = (
        "This is a tool that translates text from a language to another. It takes three inputs: `text`, which should "
        "be the text to translate, `src_lang`, which should be the language of the text to translate and `tgt_lang`, "
        "which should be the language for the desired ouput language. Both `src_lang` and `tgt_lang` are written in "
        "plain English, such as 'Romanian', or 'Albanian'. It returns the text translated in `tgt_lang`."
    )

    def __init__(self, checkpoint: str | None = None, *, device: str = "") -> None:
        super().__init__(checkpoint, device=device)
        self._language = threading.Lock()  # the language is a setting of the tokenizer

    def __call__(self, text: str, src_lang: str, tgt_lang: str) -> str:
        source, target = _code(src_lang), _code(tgt_lang)
        tokenizer, _ = self._loaded()
        with self._language:
            tokenizer.src_lang = source
            return self._written(str(text), forced_bos_token_id=tokenizer.convert_tokens_to_ids(target))


class TextClassifier(HubTool):
    """The label that a text most likely entails."""

    name = "text_classifier"
    task = "text-classification"
    checkpoint = "facebook/bart-large-mnli"
    description = (
        "This is a tool that classifies an English text using provided labels. It takes two inputs: `text`, which "
        "should be the text to classify, and `labels`, which should be the list of labels to use for classification. "
        "It returns the most likely label in the list of provided `labels` for the input text."
    )

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = loaded(AutoModelForSequenceClassification, self.checkpoint, device, dtype)
        entails = [int(number) for number, label in model.config.id2label.items() if label.lower().startswith("entail")]
        if not entails:
            raise ValueError(f"it has no label for entailment, only {', '.join(model.config.id2label.values())}")
        return AutoTokenizer.from_pretrained(self.checkpoint), model, entails[0]

    def __call__(self, text: str, labels: Sequence[str]) -> str:
        import torch

        if isinstance(labels, str) or not labels:
            raise ToolError(f"`labels` must be a list of labels, not {labels!r}.")
        tokenizer, model, entails = self._loaded()
        claims = [f"This example is {label}" for label in labels]
        inputs = tokenizer([str(text)] * len(claims), claims, return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            logits = model(**on_device(inputs, model)).logits
        return labels[int(logits[:, entails].argmax())]


class TextDownloader(HubTool):
    """The text of a web page or text file; only public addresses are read (`qwen_agent.tools.http`)."""

    name = "text_downloader"
    task = "text-download"
    checkpoint = ""
    description = (
        "This is a tool that downloads a file from a `url`. It takes the `url` as input, and returns the text "
        "contained in the file."
    )
    packages = ("lxml",)

    def __init__(self, checkpoint: str | None = None, *, device: str = "", allow_private: bool = False) -> None:
        super().__init__(checkpoint, device=device)
        self._allow_private = allow_private

    def _load(self, device: str, dtype: Any) -> Any:
        from qwen_agent.tools import html_text, http

        return http.fetch, html_text.decode, html_text.read_html

    def __call__(self, url: str) -> str:
        fetch, decode, read_html = self._loaded()
        answer = fetch(url, max_bytes=_PAGE_BYTES, allow_private=self._allow_private)
        if answer.status // 100 != 2:
            raise ToolError(f"{answer.url} answered {answer.status}.")
        text = decode(answer.body, answer.charset)
        if "\0" in text:
            raise ToolError(f"{answer.url} is not text.")
        return str(read_html(text).text if answer.media_type in _HTML else text).strip()


def _code(language: str) -> str:
    if code := _CODES.get(str(language).strip().casefold()):
        return code
    close = difflib.get_close_matches(str(language), LANGUAGE_CODES, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ": write its name in English."
    raise ToolError(f"{language!r} is not a supported language{hint}")
