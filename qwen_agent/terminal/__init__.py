"""What a person sees and types: the conversation of `qwen-agent chat`, and how a run looks on a screen or in a pipe."""
