"""The API of Transformers Agents (2023): a task, variables, and a model that writes a line of Python over tools.

python examples/transformers_agents_2023.py      (Pillow makes the picture: pip install pillow)
"""

from __future__ import annotations

from PIL import Image

from qwen_agent import load_runtime
from qwen_agent.hf_agent_adapter import QwenAgent


class ColourCaptioner:
    """A tool as it was written in 2023. It stands in for the default one of its name, which would load BLIP."""

    name = "image_captioner"
    description = (
        "This is a tool that generates a description of an image. It takes an input named `image` which should be the "
        "image to caption, and returns a text that contains the description in English."
    )

    def __call__(self, image: Image.Image) -> str:
        red, green, blue = image.resize((1, 1)).getpixel((0, 0))
        colour = max((red, "red"), (green, "green"), (blue, "blue"))[1]
        return f"a {colour} picture of {image.width} by {image.height} pixels"


def main() -> None:
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    # A model of this size does not keep to the prompt by itself; with constrained=True it writes code that can be run.
    agent = QwenAgent(load_runtime("embedded"), additional_tools=ColourCaptioner(), constrained=True)
    print("result:", agent.run("Caption the following `image`.", image=picture))

    agent.set_stream(lambda text: None)
    print("asked to read a text out loud, it wrote the wrong thing:")
    print(agent.run("Read the `text` out loud.", text="Hello!", return_code=True))


if __name__ == "__main__":
    main()
