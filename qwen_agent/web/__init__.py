"""The web page: a chat with the agent in the browser. ``mount`` puts it into a FastAPI app."""
