"""Final answers that are objects: asked for in the prompt, constrained by a schema, validated by pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen_agent.arguments import read_arguments
from qwen_agent.prompt import ask_for_json

if TYPE_CHECKING:
    from pydantic import BaseModel


class OutputType:
    """A pydantic model as the type of an agent's answers."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self.schema: dict[str, Any] = model.model_json_schema()

    def asked_for(self, system: str) -> str:
        """The system text, with the demand for this type."""
        return ask_for_json(system, self.schema)

    def read(self, answer: str) -> tuple[BaseModel | None, str]:
        """The validated object; or None, and in one sentence why the answer is none."""
        from pydantic import ValidationError

        found = read_arguments(answer, self.schema)
        if found.values is None:
            return None, "The Final Answer is not a JSON object."
        try:
            return self._model.model_validate(found.values), ""
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"])) or "the object"
            return None, f"In the Final Answer, {where}: {first['msg']}."
