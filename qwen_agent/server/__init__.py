"""The OpenAI-compatible server. ``qwen-agent serve`` starts it; app.create_app makes it."""
