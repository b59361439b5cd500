"""The page of `hf-captioner demo`: what a visitor sees and sets, and the API that stands behind it."""

import html
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image
from transformers import PreTrainedModel

from .. import CaptionerProcessor
from ..errors import InputError, brief
from ..explain import METHODS, explain, write_page
from ..models.image_processing_captioner import open_image, to_rgb
from ..models.pipeline_captioner import ImageCaptioningPipeline

SEARCHES = ("beam search", "sampling")
MOST_BEAMS = 20
MOST_CAPTIONS = 10
MOST_PROMPT = 200  # characters
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the visitor's own machine: gradio's come from the network
KEPT = (600, 3600)  # every ten minutes uploads that are older than an hour are deleted
FRAME = 620  # pixels of an explanation's height
CSS = """
.gradio-container { max-width: 72rem !important; width: 100%; margin: auto; }
.explanation iframe { border: 0; width: 100%; }
"""


def photograph() -> gr.Image:
    """An image as the captioner reads it: upright, and with the reason where it cannot be read."""
    image = gr.Image(type="pil", label="Image", sources=["upload", "webcam", "clipboard"])
    image.preprocess = read_upload  # of this one: for a subclass gradio writes a file beside this one
    return image


def read_upload(payload: Any) -> Image.Image:
    """What gradio has kept of an upload, as an image."""
    if payload is None or payload.path is None:
        raise gr.Error("An image must be given, got none.", print_exception=False)
    try:
        return to_rgb(open_image(payload.path))
    except Exception as error:  # decoders raise whatever they like
        reason = brief(error).replace(payload.path, payload.orig_name or "the file")
        raise gr.Error(f"The image cannot be read: {reason}", print_exception=False) from error


@contextmanager
def shown_errors():
    """What a visitor has to mend is told on the page."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise gr.Error(brief(error), print_exception=False) from error


@dataclass
class DemoCaptioner:
    """
    A captioner of the page.

    Attributes:
        name: its folder or Hub name.
        model, processor: in evaluation mode.
    """

    name: str
    model: PreTrainedModel
    processor: CaptionerProcessor
    pipeline: ImageCaptioningPipeline = field(init=False)

    def __post_init__(self):
        self.model.eval()
        self.pipeline = ImageCaptioningPipeline(model=self.model, processor=self.processor)

    @property
    def title(self) -> str:
        """What visitors read: no folder of this machine."""
        return Path(self.name).name if Path(self.name).is_dir() else self.name

    @property
    def methods(self) -> list[str]:
        """What can say where it looked."""
        config = self.model.config
        inside = bool(getattr(config, "encoder_layers", 0)) or self.model.vision_encoder.chooses_attention
        able = {"attention": config.attends, "rollout": config.attends and inside}
        return [method for method in METHODS if able.get(method, True)]

    def options(self, num_beams: int, search: str, temperature: float, count: int, seed: int, prompt: str) -> dict:
        """Options of `generate()`, which are seeded."""
        if len(prompt) > MOST_PROMPT:
            raise InputError(f"A prompt must have at most {MOST_PROMPT} characters, got {len(prompt)}.")
        torch.manual_seed(int(seed))
        if search == "sampling":
            drawn = {"do_sample": True, "num_beams": 1, "top_k": 0, "temperature": float(temperature)}
            return drawn | {"num_return_sequences": int(count)}
        return {"num_beams": max(int(num_beams), int(count)), "num_return_sequences": int(count)}

    def captions(self, image, *settings) -> list[dict[str, Any]]:
        options = self.options(*settings)
        found = self.pipeline(image, prompt=settings[-1], generate_kwargs=options)
        least = self.model.config.min_score or 0
        return [
            {
                "caption": one["generated_text"] if one["score"] >= least else None,
                "score": round(one["score"], 4),
                "words": [[token["token"], round(token["probability"], 4)] for token in one["tokens"]],
            }
            for one in found
        ]

    def explanation(self, image, method: str, *settings) -> str:
        """A page within the page: the first caption word by word."""
        options = self.options(*settings)
        if settings[-1]:
            options["decoder_input_ids"] = self.processor(text=settings[-1], return_tensors="pt")["decoder_input_ids"]
        found = explain(self.model, self.processor, image, method, **options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "page.html")
            write_page(path, found)
            inside = html.escape(path.read_text("utf-8"), quote=True)
        # `sandbox` without its origin: nothing in it can reach the page around it.
        return (
            f'<iframe title="Where the captioner looked for each word" sandbox="allow-scripts" height="{FRAME}" '
            f'srcdoc="{inside}"></iframe>'
        )


def shown(captions: list[dict[str, Any]]) -> tuple[str, str, str, list[dict[str, Any]]]:
    """The first caption, what is to be said of its score, the others as a list, and all as they are."""
    first, *others = captions
    sure = f"score {first['score']:.3f}"
    if first["caption"] is None:
        sure += ": too low for a caption that is to be believed; is this a photograph?"
    items = [f"<li>{html.escape(one['caption'] or '(none)')} <small>{one['score']:.3f}</small></li>" for one in others]
    return first["caption"] or "", sure, f'<ol start="2">{"".join(items)}</ol>' if items else "", captions


def results_of(name: str) -> list[gr.components.Component]:
    """Where [`shown`] goes; the last one is for programs."""
    return [
        gr.Textbox(label=f"Caption{name}", lines=2, interactive=False),
        gr.Textbox(label="How sure it is", interactive=False),
        gr.HTML(label="Other captions"),
        gr.JSON(label="Captions, scores and words' probabilities", visible=False),
    ]


def settings_of(captioners: Sequence[DemoCaptioner]) -> list[gr.components.Component]:
    """What a visitor may set, in the order of [`DemoCaptioner.options`]."""
    own = captioners[0].model.generation_config.num_beams or 1
    return [
        gr.Slider(1, MOST_BEAMS, own, step=1, label="Beams"),
        gr.Radio(SEARCHES, value=SEARCHES[0], label="Search"),
        gr.Slider(0.1, 2.0, 1.0, step=0.1, label="Temperature", info="of sampling"),
        gr.Slider(1, MOST_CAPTIONS, 1, step=1, label="Captions"),
        gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed", info="of sampling"),
        gr.Textbox("", label="Prompt", info="what the caption begins with", max_length=MOST_PROMPT),
    ]


def build(captioners: Sequence[DemoCaptioner], examples: Sequence[str] = ()) -> gr.Blocks:
    """
    The page.

    Args:
        captioners: one, or two that are compared.
        examples: files of images that visitors may choose from.
    """
    first = captioners[0]

    def caption(image, *settings):
        with shown_errors():
            return shown(first.captions(image, *settings))

    def look(image, method, *settings):
        with shown_errors():
            return first.explanation(image, method, *settings)

    def compare(image, *settings):
        with shown_errors():
            both = [shown(captioner.captions(image, *settings)) for captioner in captioners]
        return tuple(value for parts in both for value in parts)

    with gr.Blocks(
        title=f"{first.title}: image captions", analytics_enabled=False, fill_width=True, delete_cache=KEPT
    ) as page:
        gr.Markdown(f"# Image captions by {first.title}\n{first.model.config.describe()}")
        with gr.Tab("Caption"):
            with gr.Row():
                with gr.Column():
                    image = photograph()
                    start = gr.Button("Caption", variant="primary")
                    with gr.Accordion("How captions are searched for", open=False):
                        settings = settings_of(captioners)
                    if examples:
                        gr.Examples([[path] for path in examples], [image], cache_examples=False)
                with gr.Column():
                    results = results_of("")
            method = gr.Radio(first.methods, value=first.methods[0], label="Where it looked, by")
            frame = gr.HTML(elem_classes=["explanation"], label="Where it looked")
            start.click(caption, [image, *settings], results, api_name="caption").success(
                look, [image, method, *settings], frame, api_name="explain"
            )
            method.change(look, [image, method, *settings], frame, api_visibility="private")
        if len(captioners) > 1:
            with gr.Tab("Compare"):
                with gr.Row():
                    same = photograph()
                    with gr.Column():
                        begin = gr.Button("Compare", variant="primary")
                        with gr.Accordion("How captions are searched for", open=False):
                            both_settings = settings_of(captioners)
                pairs: list[gr.components.Component] = []
                with gr.Row():
                    for captioner in captioners:
                        with gr.Column():
                            gr.Markdown(f"## {captioner.title}\n{captioner.model.config.describe()}")
                            pairs += results_of(f" by {captioner.title}")
                with gr.Row():
                    frames = [gr.HTML(elem_classes=["explanation"]) for _ in captioners]
                done = begin.click(compare, [same, *both_settings], pairs, api_name="compare")
                for captioner, place in zip(captioners, frames, strict=True):
                    done.success(look_by(captioner), [same, *both_settings], place, api_visibility="private")
    return page


def look_by(captioner: DemoCaptioner):
    """Explains by the first of a captioner's methods."""

    def look(image, *settings):
        with shown_errors():
            return captioner.explanation(image, captioner.methods[0], *settings)

    return look


def launch(
    page: gr.Blocks, address: tuple[str, int], max_waiting: int, max_upload: float, examples: Sequence[str] = ()
) -> None:
    """
    Serves the page in threads of this process; one request at a time has the captioner.

    Args:
        page: see [`build`].
        address: host and port; port 0 for one that is free.
        max_waiting: requests that may wait.
        max_upload: MiB of an image's file.
        examples: files that are served.

    Raises:
        InputError: if the address cannot be listened on.
    """
    host, port = address
    page.queue(max_size=max_waiting, default_concurrency_limit=1)
    try:
        page.launch(
            server_name=host,
            server_port=port or free_port(host),
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=int(max_upload * 2**20),
            allowed_paths=list(examples),
            ssr_mode=False,
            footer_links=["api"],
            theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            enable_monitoring=False,
        )
    except OSError as error:
        raise InputError(f"`--host` and `--port` must be an address that is free, got {host}:{port}") from error


def free_port(host: str) -> int:
    import socket

    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]
