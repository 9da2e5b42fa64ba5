"""The Space: layout and events only; what they compute is in demo.py."""

import logging
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from demo import (  # type: ignore[import-not-found]  # beside this file, in no package
    FIRST_STEP,
    HEADERS,
    MAX_FILE_BYTES,
    View,
    example_files,
    load_ensemble,
    sub_model_names,
    view_of_drawing,
    view_of_file,
    view_of_picture,
)

from edvit_hf.errors import EDViTError
from edvit_hf.runtime import EDViTRuntime

INTRODUCTION = """# One digit, several small sub-models

A Vision Transformer was split by its classes into small **sub-models**. Each knows a few digits and says
"other" for the rest; a **fusion head** joins what they send. Here each sub-model stands for one device:
unplug some and see how the answer changes. Everything runs on this machine's processor, one
sub-model after the other."""
CSS = ".pixels img { image-rendering: pixelated; }"
CANVAS = 280  # px
BRUSH = 12  # radius in px, near the strokes of the data for a digit that fills the canvas


def outputs(view: View) -> tuple[Any, ...]:
    """A view as values of the components, in the order of `shown`."""
    enlarged = None if view.picture is None else np.kron(view.picture, np.ones((20, 20, 1), np.uint8))
    return view.picture, enlarged, dict(view.probabilities) or None, view.rows, view.sentence


def build(ensemble: EDViTRuntime) -> gr.Blocks:
    """The page for one ensemble."""
    examples = example_files()
    with gr.Blocks(title="edvit_hf: digits", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        picture = gr.State(None)
        with gr.Row():
            with gr.Column():
                with gr.Tab("Draw"):
                    sketch = gr.Sketchpad(
                        label="Draw one digit",
                        type="numpy",
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        layers=False,
                        transforms=(),
                        brush=gr.Brush(default_size=BRUSH, colors=["#111111"], color_mode="fixed"),
                    )
                    draw = gr.Button("Read the drawing", variant="primary")
                with gr.Tab("Upload"):
                    file = gr.File(label="A picture of one digit (PNG, JPEG, ...)", type="filepath")
                    upload = gr.Button("Read the picture", variant="primary")
                samples = gr.Dataset(
                    label="Examples from the digits dataset",
                    components=[gr.Image(visible=False)],
                    samples=[[str(path)] for path in examples],
                    type="index",
                    elem_classes="pixels",
                )
                choices = [(name, index) for index, name in enumerate(sub_model_names(ensemble))]
                unplugged = gr.CheckboxGroup(choices, value=[], label="Unplug sub-models (number: its digits)")
            with gr.Column():
                sentence = gr.Markdown(FIRST_STEP)
                label = gr.Label(label="Answer of the fusion head", num_top_classes=5)
                seen = gr.Image(label="What the sub-models see", format="png", height=180, interactive=False)
        table = gr.Dataframe(headers=HEADERS, label="Sub-models", interactive=False, wrap=True)
        shown = [picture, seen, label, table, sentence]

        def on_draw(drawing: dict[str, Any] | None, out: list[int]) -> tuple[Any, ...]:
            return outputs(view_of_drawing(ensemble, drawing, out))

        def on_upload(path: str | None, out: list[int]) -> tuple[Any, ...]:
            return outputs(view_of_file(ensemble, path, out))

        def on_example(index: int, out: list[int]) -> tuple[Any, ...]:
            return outputs(view_of_file(ensemble, examples[index], out))

        def on_unplug(current: np.ndarray | None, out: list[int]) -> tuple[Any, ...]:
            return outputs(view_of_picture(ensemble, current, out))

        draw.click(on_draw, [sketch, unplugged], shown, api_name="draw")
        upload.click(on_upload, [file, unplugged], shown, api_name="upload")
        samples.click(on_example, [samples, unplugged], shown, api_name="example")
        unplugged.change(on_unplug, [picture, unplugged], shown, api_name="unplug", trigger_mode="always_last")
    return page


def build_missing(reason: str) -> gr.Blocks:
    """The page without an ensemble: what to do."""
    with gr.Blocks(title="edvit_hf: digits", analytics_enabled=False) as page:
        gr.Markdown(f"{INTRODUCTION}\n\n**Not ready.** {reason}")
    return page


def build_page(model_dir: Path | None = None) -> gr.Blocks:
    """The demo, or the page that says what is missing."""
    try:
        ensemble = load_ensemble() if model_dir is None else load_ensemble(model_dir)
    except EDViTError as error:
        logging.getLogger(__name__).error("%s", error)
        return build_missing(str(error))
    return build(ensemble)


def launch(page: gr.Blocks, **settings: Any) -> Any:
    """Serve the page; a system font keeps the browser from fetching one elsewhere."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return page.launch(theme=theme, css=CSS, max_file_size=MAX_FILE_BYTES, **settings)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    launch(build_page())
