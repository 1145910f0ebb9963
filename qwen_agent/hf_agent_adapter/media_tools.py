"""The tools of the 2023 toolbox for pictures, speech and video. Pictures are Pillow's, sounds are waveforms."""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import ToolError
from qwen_agent.hf_agent_adapter.hub_tool import HubTool, loaded, on_device
from qwen_agent.tools import images

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLING_RATE = 16_000  # of all sounds, both ways
FRAMES_PER_SECOND = 8
MAX_SECONDS = 60
_PICTURES = ("transformers", "PIL")
_DIFFUSION = ("transformers", "diffusers", "PIL")


class DocumentQuestionAnswering(HubTool):
    """The answer to a question about a page, by Donut."""

    name = "document_qa"
    task = "document-question-answering"
    checkpoint = "naver-clova-ix/donut-base-finetuned-docvqa"
    description = (
        "This is a tool that answers a question about an document (pdf). It takes an input named `document` which "
        "should be the document containing the information, as well as a `question` that is the question about the "
        "document. It returns a text that contains the answer to the question."
    )
    packages = (*_PICTURES, "sentencepiece")

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import AutoProcessor, VisionEncoderDecoderModel

        processor = AutoProcessor.from_pretrained(self.checkpoint)
        return processor, loaded(VisionEncoderDecoderModel, self.checkpoint, device, dtype)

    def __call__(self, document: Image, question: str) -> str:
        page = picture(document)
        processor, model = self._loaded()
        tokenizer = processor.tokenizer
        prompt = f"<s_docvqa><s_question>{question}</s_question><s_answer>"
        inputs = {
            "pixel_values": processor(page, return_tensors="pt").pixel_values,
            "decoder_input_ids": tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids,
        }
        [ids] = model.generate(
            **on_device(inputs, model),
            max_length=model.decoder.config.max_position_embeddings,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            num_beams=1,
            bad_words_ids=[[tokenizer.unk_token_id]],
        )
        text = processor.batch_decode([ids])[0].replace(tokenizer.eos_token, "").replace(tokenizer.pad_token, "")
        found = processor.token2json(re.sub(r"<.*?>", "", text, count=1).strip())  # without the task's token
        return str(found.get("answer", found.get("text_sequence", ""))) if isinstance(found, dict) else ""


class ImageCaptioner(HubTool):
    """What a picture shows, by BLIP."""

    name = "image_captioner"
    task = "image-captioning"
    checkpoint = "Salesforce/blip-image-captioning-base"
    description = (
        "This is a tool that generates a description of an image. It takes an input named `image` which should be the "
        "image to caption, and returns a text that contains the description in English."
    )
    packages = _PICTURES

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(self.checkpoint)
        return processor, loaded(AutoModelForImageTextToText, self.checkpoint, device, dtype)

    def __call__(self, image: Image) -> str:
        shown = picture(image)
        processor, model = self._loaded()
        ids = model.generate(**on_device(processor(images=shown, return_tensors="pt"), model), max_new_tokens=50)
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


class ImageQuestionAnswering(HubTool):
    """The answer to a question about a picture: one of the labels that ViLT knows."""

    name = "image_qa"
    task = "image-question-answering"
    checkpoint = "dandelin/vilt-b32-finetuned-vqa"
    description = (
        "This is a tool that answers a question about an image. It takes an input named `image` which should be the "
        "image containing the information, as well as a `question` which should be the question in English. It "
        "returns a text that is the answer to the question."
    )
    packages = _PICTURES

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        processor = AutoProcessor.from_pretrained(self.checkpoint)
        return processor, loaded(AutoModelForVisualQuestionAnswering, self.checkpoint, device, dtype)

    def __call__(self, image: Image, question: str) -> str:
        import torch

        shown = picture(image)
        processor, model = self._loaded()
        inputs = processor(images=shown, text=str(question), return_tensors="pt", truncation=True)
        with torch.inference_mode():
            logits = model(**on_device(inputs, model)).logits
        return str(model.config.id2label[int(logits.argmax(-1))])


class ImageSegmenter(HubTool):
    """A mask, white where the picture shows what the label says, at CLIPSeg's own size."""

    name = "image_segmenter"
    task = "image-segmentation"
    checkpoint = "CIDAS/clipseg-rd64-refined"
    description = (
        "This is a tool that creates a segmentation mask of an image according to a label. It cannot create an image."
        "It takes two arguments named `image` which should be the original image, and `label` which should be a text "
        "describing the elements what should be identified in the segmentation mask. The tool returns the mask."
    )
    packages = _PICTURES

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import AutoProcessor, CLIPSegForImageSegmentation

        processor = AutoProcessor.from_pretrained(self.checkpoint)
        return processor, loaded(CLIPSegForImageSegmentation, self.checkpoint, device, dtype)

    def __call__(self, image: Image, label: str) -> Image:
        import torch
        from PIL import Image as pictures

        shown = picture(image)
        processor, model = self._loaded()
        inputs = processor(text=[str(label)], images=[shown], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**on_device(inputs, model)).logits  # [1, height, width], or without the 1
        mask = (logits.reshape(logits.shape[-2:]) > 0).to("cpu", torch.uint8) * 255
        return pictures.fromarray(mask.numpy())


class Transcriber(HubTool):
    """The words in a sound, by Whisper: a waveform at 16 kHz, or the path of a WAV file of that rate."""

    name = "transcriber"
    task = "speech-to-text"
    checkpoint = "openai/whisper-base"
    description = (
        "This is a tool that transcribes an audio into text. It takes an input named `audio` and returns the "
        "transcribed text."
    )

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        processor = WhisperProcessor.from_pretrained(self.checkpoint)
        return processor, loaded(WhisperForConditionalGeneration, self.checkpoint, device, dtype)

    def __call__(self, audio: Any) -> str:
        sound = waveform(audio)
        processor, model = self._loaded()
        inputs = processor(sound, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        ids = model.generate(**on_device({"input_features": inputs.input_features}, model))
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


class TextReader(HubTool):
    """A text read out loud, by SpeechT5: a waveform (a tensor of float32) at 16 kHz.

    ``voice`` is an x-vector of 512 numbers. The data set that the original took its voice from can no longer be
    loaded; without a voice it is the model's own, for an x-vector of zeros.
    """

    name = "text_reader"
    task = "text-to-speech"
    checkpoint = "microsoft/speecht5_tts"
    description = (
        "This is a tool that reads an English text out loud. It takes an input named `text` which should contain the "
        "text to read (in English) and returns a waveform object containing the sound."
    )
    packages = ("transformers", "sentencepiece")

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        device: str = "",
        vocoder: str = "microsoft/speecht5_hifigan",
        voice: Sequence[float] = (),
    ) -> None:
        super().__init__(checkpoint, device=device)
        self._vocoder, self._voice = vocoder, [float(number) for number in voice]  # also of an array

    def _load(self, device: str, dtype: Any) -> Any:
        from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5Processor

        processor = SpeechT5Processor.from_pretrained(self.checkpoint)
        model = loaded(SpeechT5ForTextToSpeech, self.checkpoint, device, dtype)
        return processor, model, loaded(SpeechT5HifiGan, self._vocoder, device, dtype)

    def __call__(self, text: str) -> Any:
        import torch

        processor, model, vocoder = self._loaded()
        inputs = {"input_ids": processor(text=str(text), return_tensors="pt", truncation=True)["input_ids"]}
        size = model.config.speaker_embedding_dim
        if self._voice and len(self._voice) != size:
            raise ToolError(f"The voice has {len(self._voice)} numbers, but '{self.checkpoint}' takes {size}.")
        voice = torch.tensor([self._voice or [0.0] * size], device=model.device, dtype=model.dtype)
        with torch.inference_mode():
            sound = model.generate_speech(**on_device(inputs, model), speaker_embeddings=voice, vocoder=vocoder)
        return sound.float().cpu()


class ImageGenerator(HubTool):
    """A picture from words, by Stable Diffusion."""

    name = "image_generator"
    task = "text-to-image"
    checkpoint = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    description = (
        "This is a tool that creates an image according to a prompt, which is a text description. It takes an input "
        "named `prompt` which contains the image description and outputs an image."
    )
    packages = _DIFFUSION

    def _load(self, device: str, dtype: Any) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return _pipeline(self.checkpoint, device, dtype, DPMSolverMultistepScheduler)

    def __call__(self, prompt: str) -> Image:
        made: Image = self._loaded()(str(prompt), num_inference_steps=25).images[0]
        return made


class ImageTransformer(HubTool):
    """A picture changed by words, by InstructPix2Pix."""

    name = "image_transformer"
    task = "image-transformation"
    checkpoint = "timbrooks/instruct-pix2pix"
    description = (
        "This is a tool that transforms an image according to a prompt. It takes two inputs: `image`, which should be "
        "the image to transform, and `prompt`, which should be the prompt to use to change it. It returns the "
        "modified image."
    )
    packages = _DIFFUSION

    def _load(self, device: str, dtype: Any) -> Any:
        from diffusers import EulerAncestralDiscreteScheduler

        return _pipeline(self.checkpoint, device, dtype, EulerAncestralDiscreteScheduler)

    def __call__(self, image: Image, prompt: str) -> Image:
        before = picture(image)
        made: Image = self._loaded()(str(prompt), image=before, num_inference_steps=50).images[0]
        return made


@dataclass(frozen=True, slots=True)
class Video:
    """Pictures that follow each other ``frames_per_second``."""

    frames: tuple[Image, ...]
    frames_per_second: int = FRAMES_PER_SECOND

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an animated picture: GIF, WEBP or PNG, by the name's ending."""
        first, *others = self.frames
        first.save(path, save_all=True, append_images=others, duration=1000 // self.frames_per_second, loop=0)


class VideoGenerator(HubTool):
    """A short video from words: 8 pictures a second."""

    name = "video_generator"
    task = "text-to-video"
    checkpoint = "ali-vilab/text-to-video-ms-1.7b"
    description = (
        "This is a tool that creates a video according to a text description. It takes an input named `prompt` which "
        "contains the image description, as well as an optional input `seconds` which will be the duration of the "
        "video. The default is of two seconds. The tool outputs a video object."
    )
    packages = _DIFFUSION

    def _load(self, device: str, dtype: Any) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return _pipeline(self.checkpoint, device, dtype, DPMSolverMultistepScheduler)

    def __call__(self, prompt: str, seconds: float = 2) -> Video:
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_SECONDS:
            raise ToolError(f"`seconds` must be a number above 0, {MAX_SECONDS} at most, not {seconds!r}.")
        count = max(1, round(FRAMES_PER_SECOND * seconds))
        pipeline = self._loaded()
        [frames] = pipeline(str(prompt), num_inference_steps=25, num_frames=count, output_type="pil").frames
        return Video(tuple(frames))


def picture(given: Any) -> Image:
    """A picture in RGB, or the file of one. Raises ToolError for what is none, or is too large to decode."""
    from PIL import Image as pictures

    if isinstance(given, pictures.Image):
        return given.convert("RGB")
    if not isinstance(given, (str, os.PathLike)):
        raise ToolError(f"A picture is needed, not {type(given).__name__}.")
    try:
        return images.decode(Path(given).read_bytes()).convert("RGB")
    except (OSError, ValueError) as error:
        raise ToolError(f"'{given}' is no picture that can be read ({error}).") from None


def waveform(given: Any) -> Any:
    """A sound as numbers from -1 to 1 at 16 kHz, on one channel. Raises ToolError."""
    import numpy

    if isinstance(given, (str, os.PathLike)):
        return _wav(Path(given))
    try:
        sound = numpy.asarray(given, dtype=numpy.float32).squeeze()
    except (TypeError, ValueError):
        sound = numpy.zeros((0, 0), dtype=numpy.float32)
    if sound.ndim != 1 or not sound.size:
        raise ToolError(f"A waveform of one channel, or the path of a WAV file, is needed, not {type(given).__name__}.")
    return sound


def _wav(path: Path) -> Any:
    import numpy

    try:
        with wave.open(str(path), "rb") as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (OSError, wave.Error, EOFError) as error:
        raise ToolError(f"'{path}' is no WAV file that can be read ({error}).") from None
    if (rate, width) != (SAMPLING_RATE, 2):
        raise ToolError(f"'{path}' has {rate} Hz and {8 * width} bits: convert it to {SAMPLING_RATE} Hz and 16 bits.")
    samples = numpy.frombuffer(data, dtype="<i2").reshape(-1, channels)
    return (samples.mean(axis=1) / 32768).astype(numpy.float32)


def _pipeline(checkpoint: str, device: str, dtype: Any, scheduler: Any) -> Any:
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    made = DiffusionPipeline.from_pretrained(checkpoint, dtype=dtype).to(device)
    made.scheduler = scheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made
