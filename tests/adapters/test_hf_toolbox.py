"""The fourteen tools: each on a checkpoint of its own architecture, tiny and random, made here."""

from __future__ import annotations

import string
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwen_agent.errors import InputError, MissingDependency, ToolError
from qwen_agent.hf_agent_adapter import QwenAgent, default_toolbox, load_tool
from qwen_agent.hf_agent_adapter.media_tools import TextReader, Video, picture, waveform
from qwen_agent.hf_agent_adapter.text_tools import TextDownloader
from qwen_agent.hf_agent_adapter.toolbox import TOOLS

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")

# diffusers hands tensors to NumPy 2 in a way that torch does not take yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ("this", "example", "is", "positive", "negative", "a", "cat", "text", "example.", "yes", "no", "what")
Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The folder of the tiny checkpoint that a tool needs, made when it is first asked for."""
    made: dict[str, Path] = {}

    def make(tool: str) -> Path:
        if tool not in made:
            made[tool] = tmp_path_factory.mktemp(tool)
            torch.manual_seed(0)
            MAKERS[tool](made[tool])
        return made[tool]

    return make


@pytest.fixture(scope="session")
def red() -> Any:
    return Image.new("RGB", (48, 40), "red")


# ---- text


def words(folder: Path, **tokens: str) -> Any:
    """A tokenizer of words, saved to the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names, **tokens, model_max_length=32)
    tokenizer.save_pretrained(folder)
    return tokenizer


def bart_config(tokenizer: Any, **more: Any) -> Any:
    return transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        **more,
    )


def make_summarizer(folder: Path) -> None:
    model = transformers.BartForConditionalGeneration(bart_config(words(folder)))
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)


def make_classifier(folder: Path) -> None:
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    transformers.BartForSequenceClassification(
        bart_config(words(folder), id2label=labels, label2id={name: n for n, name in labels.items()})
    ).save_pretrained(folder)


def make_text_qa(folder: Path) -> None:
    tokenizer = words(folder)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=1,
        pad_token_id=1,
        eos_token_id=2,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def make_translator(folder: Path) -> None:
    vocabulary = {
        token: n for n, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS)))
    }
    tokenizer = transformers.NllbTokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(folder)
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
    )
    model = transformers.M2M100ForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)


# ---- pictures


def bert_tokenizer() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return transformers.BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=16)


def make_captioner(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    ids = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**SMALL, **ids, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = transformers.BlipConfig(
        text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    pictures = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(pictures, tokenizer).save_pretrained(folder)


def make_image_qa(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = transformers.ViltConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        image_size=32,
        patch_size=16,
        max_position_embeddings=16,
        id2label={0: "yes", 1: "no"},
        label2id={"yes": 0, "no": 1},
    )
    transformers.ViltForQuestionAnswering(config).save_pretrained(folder)
    pictures = transformers.ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=16)
    transformers.ViltProcessor(pictures, tokenizer).save_pretrained(folder)


def clip_tokenizer() -> Any:
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20)


def make_segmenter(folder: Path) -> None:
    tokenizer = clip_tokenizer()
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPSegConfig(
        text_config={**SMALL, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 20},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    pictures = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    transformers.CLIPSegProcessor(pictures, tokenizer).save_pretrained(folder)


def make_document_qa(folder: Path) -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = words(folder)
    tokenizer.add_tokens(["<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>"])
    encoder = transformers.DonutSwinConfig(
        image_size=[32, 32], patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    )
    decoder = transformers.MBartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_position_embeddings=24,
        is_decoder=True,
        add_cross_attention=True,
    )
    model = transformers.VisionEncoderDecoderModel(
        encoder=transformers.DonutSwinModel(encoder), decoder=transformers.MBartForCausalLM(decoder)
    )
    model.config.decoder_start_token_id = 0
    model.save_pretrained(folder)
    pictures = transformers.DonutImageProcessorPil(size={"height": 32, "width": 32})
    transformers.DonutProcessor(pictures, tokenizer).save_pretrained(folder)


# ---- sounds


def make_transcriber(folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[])
    features = transformers.WhisperFeatureExtractor(feature_size=8)
    transformers.WhisperProcessor(features, tokenizer).save_pretrained(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=16,
        decoder_start_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=0,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)


def make_reader(folder: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([string.ascii_letters + " .,?!"] * 3),
        model_prefix=str(folder / "spm_char"),
        model_type="char",
        vocab_size=60,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    tokenizer = transformers.SpeechT5Tokenizer(str(folder / "spm_char.model"))
    features = transformers.SpeechT5FeatureExtractor(num_mel_bins=8)
    transformers.SpeechT5Processor(features, tokenizer).save_pretrained(folder)
    config = transformers.SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=8,
        speaker_embedding_dim=4,
        speech_decoder_prenet_units=8,
        speech_decoder_postnet_layers=2,
        speech_decoder_postnet_units=8,
        reduction_factor=2,
        max_text_positions=64,
    )
    transformers.SpeechT5ForTextToSpeech(config).save_pretrained(folder)
    vocoder = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=8,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
    )
    transformers.SpeechT5HifiGan(vocoder).save_pretrained(folder / "vocoder")


# ---- diffusion


def clip_text(tokenizer: Any) -> Any:
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPTextConfig(**SMALL, **ids, vocab_size=len(tokenizer), max_position_embeddings=20)
    return transformers.CLIPTextModel(config)


def vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
    )


def make_diffusion(folder: Path, kind: str, channels: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    tokenizer = clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def make_video(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    tokenizer = clip_tokenizer()
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    diffusers.TextToVideoSDPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    ).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "summarizer": make_summarizer,
    "text_classifier": make_classifier,
    "text_qa": make_text_qa,
    "translator": make_translator,
    "image_captioner": make_captioner,
    "image_qa": make_image_qa,
    "image_segmenter": make_segmenter,
    "document_qa": make_document_qa,
    "transcriber": make_transcriber,
    "text_reader": make_reader,
    "image_generator": lambda folder: make_diffusion(folder, "StableDiffusionPipeline", 4),
    "image_transformer": lambda folder: make_diffusion(folder, "StableDiffusionInstructPix2PixPipeline", 8),
    "video_generator": make_video,
}


# ---- the tools


@pytest.fixture
def load(checkpoint: Checkpoint) -> Callable[[str], Any]:
    return lambda name: load_tool(name, str(checkpoint(name)), device="cpu")


def test_a_text_is_summarized(load):
    assert isinstance(load("summarizer")("this is a text"), str)


def test_a_question_about_a_text_is_answered(load):
    assert isinstance(load("text_qa")(text="a cat", question="what is this"), str)


def test_a_text_is_classified(load):
    classifier = load("text_classifier")
    tokenizer, model, entails = classifier._loaded()
    assert entails == 0
    claims = [f"a cat </s> </s> This example is {label}" for label in ("positive", "negative")]
    logits = [model(**tokenizer(claim, return_tensors="pt")).logits[0, 0] for claim in claims]
    wanted = ("positive", "negative")[logits.index(max(logits))]
    assert classifier("a cat", ["positive", "negative"]) == wanted
    with pytest.raises(ToolError, match="`labels` must be a list of labels, not 'positive'"):
        classifier("a cat", labels="positive")


def test_a_text_is_translated(load, monkeypatch):
    translator = load("translator")
    tokenizer, model = translator._loaded()
    began = []
    monkeypatch.setattr(model, "generate", lambda **options: began.append(options) or torch.tensor([[4, 5]]))
    assert translator("a cat", src_lang="English", tgt_lang="french") == "this example"
    [asked] = began
    assert tokenizer.convert_ids_to_tokens(asked["forced_bos_token_id"]) == "fra_Latn"
    assert tokenizer.convert_ids_to_tokens(asked["input_ids"][0])[0] == "eng_Latn"
    monkeypatch.undo()
    assert isinstance(translator("a cat", "English", "French"), str)
    with pytest.raises(ToolError, match=r"'Frensh' is not a supported language; did you mean .*French"):
        translator("a cat", "English", "Frensh")
    assert isinstance(translator("a cat", "English", "Minangkabau Arabic"), str)


def test_a_picture_is_captioned(load, red):
    assert isinstance(load("image_captioner")(red), str)


def test_a_question_about_a_picture_is_answered(load, red):
    assert load("image_qa")(image=red, question="what is this") in ("yes", "no")


def test_a_picture_is_segmented(load, red):
    mask = load("image_segmenter")(image=red, label="cat")
    assert (mask.mode, mask.size) == ("L", (32, 32)) and set(mask.tobytes()) <= {0, 255}


def test_a_question_about_a_page_is_answered(load, red):
    assert isinstance(load("document_qa")(red, question="what is this"), str)


def test_a_text_is_read_and_transcribed(load, checkpoint):
    folder = checkpoint("text_reader")
    reader = TextReader(str(folder), device="cpu", vocoder=str(folder / "vocoder"))
    sound = reader("a cat.")
    assert sound.ndim == 1 and len(sound) > 0 and sound.dtype == torch.float32
    assert isinstance(load("transcriber")(sound), str)
    voice = torch.tensor([1.0, 2.0])
    spoken = TextReader(str(folder), device="cpu", vocoder=str(folder / "vocoder"), voice=voice)
    with pytest.raises(ToolError, match=r"The voice has 2 numbers, but .* takes 4"):
        spoken("a cat.")


def test_a_picture_is_made_and_transformed(load):
    made = load("image_generator")("a cat")
    assert made.size == (64, 64)
    assert load("image_transformer")(made, prompt="red").size == (64, 64)


def test_a_video_is_made(load, tmp_path):
    video = load("video_generator")("a cat", seconds=0.25)
    assert isinstance(video, Video) and len(video.frames) == 2
    video.save(tmp_path / "cat.gif")
    with Image.open(tmp_path / "cat.gif") as file:
        assert (file.n_frames, file.size) == (2, (64, 64))
    with pytest.raises(ToolError, match="`seconds` must be a number above 0, 60 at most, not 0"):
        load("video_generator")("a cat", seconds=0)


@pytest.fixture
def pages() -> Iterator[str]:
    pytest.importorskip("lxml")

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {
                "/page": ("text/html", b"<html><title>T</title><body><p>A lobster swims.</p></body></html>"),
                "/plain": ("text/plain", b"plain <b>text</b>"),
                "/picture": ("image/png", b"\x89PNG\0\0"),
            }
            kind, body = known.get(self.path, ("text/plain", b""))
            self.send_response(200 if self.path in known else 404)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_text_is_downloaded_without_transformers(pages, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    assert TextDownloader(allow_private=True)(f"{pages}/plain") == "plain <b>text</b>"


def test_a_text_is_downloaded(pages):
    download = TextDownloader(allow_private=True)
    assert "A lobster swims." in download(f"{pages}/page") and "<p>" not in download(f"{pages}/page")
    assert download(url=f"{pages}/plain") == "plain <b>text</b>"
    with pytest.raises(ToolError, match="answered 404"):
        download(f"{pages}/none")
    with pytest.raises(ToolError, match="is not text"):
        download(f"{pages}/picture")
    with pytest.raises(ToolError):
        TextDownloader()(f"{pages}/page")  # a private address


# ---- what they share


def test_there_are_the_fourteen_of_2023_in_the_order_of_the_prompt():
    assert list(default_toolbox()) == [
        *("document_qa", "image_captioner", "image_qa", "image_segmenter", "transcriber", "summarizer"),
        *("text_classifier", "text_qa", "text_reader", "translator", "image_transformer", "text_downloader"),
        *("image_generator", "video_generator"),
    ]
    for tool in TOOLS:
        assert tool.description.startswith("This is a tool that ")
        assert tool.name == "text_downloader" or tool.checkpoint.count("/") == 1


@pytest.mark.parametrize("task", ["image-captioning", "image_captioner", "huggingface-tools/image-captioning"])
def test_a_tool_is_found_by_its_task_or_name(task):
    assert load_tool(task).name == "image_captioner"


def test_a_task_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="there is no tool for 'cooking': the tasks are document-question-answering, "):
        load_tool("cooking")


def test_a_checkpoint_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ToolError, match=r"`summarizer` needs the checkpoint '.*', which cannot be loaded \("):
        load_tool("summarizer", str(tmp_path), device="cpu")("text")


def test_what_is_not_installed_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr("qwen_agent.tools.local_models.importlib.util.find_spec", lambda name: None)
    for tool in default_toolbox().values():
        with pytest.raises(MissingDependency, match=r"is not installed: pip install 'qwen-react-agent\[hf\]'"):
            tool._loaded()


def test_a_model_is_loaded_once(load):
    tool = load("summarizer")
    tool("a cat")
    assert tool._loaded() is tool._loaded()


def test_pictures_may_be_files(tmp_path, red):
    red.save(tmp_path / "red.png")
    assert picture(tmp_path / "red.png").getpixel((0, 0)) == (255, 0, 0)
    for wrong, words_ in ((3, "A picture is needed, not int"), (tmp_path / "no.png", "is no picture that can be read")):
        with pytest.raises(ToolError, match=words_):
            picture(wrong)


def test_sounds_may_be_wav_files(tmp_path):
    for name, rate in (("good.wav", 16_000), ("bad.wav", 8_000)):
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((16384).to_bytes(2, "little") * 20)
    assert waveform(tmp_path / "good.wav").tolist() == [0.5] * 10
    assert waveform([[0.25, 0.5]]).tolist() == [0.25, 0.5]
    with pytest.raises(ToolError, match="has 8000 Hz and 16 bits: convert it to 16000 Hz and 16 bits"):
        waveform(tmp_path / "bad.wav")
    for wrong in ("none.wav", [], "text", object()):
        with pytest.raises(ToolError):
            waveform(wrong)


def test_pictures_travel_between_tools(scripted, load, red):
    """A whole run: the code of a model, a tool that makes a picture, and one that takes it."""
    said = " tools: `image_transformer`, then `image_captioner`.\n\nAnswer:\n```py\n"
    code = 'new_image = image_transformer(image, prompt="blue")\ncaption = image_captioner(new_image)\n'
    tools = {name: load(name) for name in ("image_transformer", "image_captioner")}
    agent = QwenAgent(scripted(f"{said}{code}```"), tools=tools)
    agent.set_stream(lambda text: None)
    assert isinstance(agent.run("Make the `image` blue and caption it.", image=red), str)
