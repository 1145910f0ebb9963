"""An answer as an object, not as prose: the grammar holds the model to the schema, pydantic validates the rest.

python examples/typed_answer.py
"""

from pydantic import BaseModel

from qwen_agent import Agent, load_runtime
from qwen_agent.tools.calculator import calculator


class Sum(BaseModel):
    result: float


def main() -> None:
    agent = Agent(load_runtime("embedded"), [calculator], output_type=Sum)
    answer = agent.run("What is 37*43+12?")
    print(answer.output)
    print(f"sure of its first step: {answer.steps[0].confidence}")


if __name__ == "__main__":
    main()
