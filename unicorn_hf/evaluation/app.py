"""A web page to try a model: ask about an image, and see the captions nearest to it and its place among them."""

import queue
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from unicorn_hf.data.provenance import Origin, read_provenance
from unicorn_hf.data.sources import check_columns, read_dataset
from unicorn_hf.errors import InputError, require
from unicorn_hf.evaluation.answering import load_trained_model, load_transfer
from unicorn_hf.evaluation.config import AppConfig
from unicorn_hf.evaluation.images import answer, encode_images, find_image_encoder
from unicorn_hf.evaluation.report import short_name

# Column -> the title of its plot, and the colour of its dots (Okabe and Ito 2008).
_COLUMNS = {
    "text_embeds": ("captions before the transfer", "#0072B2"),
    "image_embeds": ("captions after the transfer", "#009E73"),
}
_CAPTIONS = 50_000  # the most captions that an image is compared with
_POINTS = 1500  # of each kind in the plot
_NEAREST = 10


def make_page(model, *, captions=None, config: AppConfig | None = None, **options):
    """The page, as `gradio.Blocks`; `.launch()` serves it.

    Args:
        model: folder or Hub id of a trained model.
        captions: a dataset with `caption` and `image_embeds` or `text_embeds`; the page shows its nearest captions.
        config: the options; `options` replace single fields of it.

    Raises:
        InputError: the model, the captions or an option cannot be used.
    """
    config = AppConfig.of(config, options)
    require("gradio", "app")
    require("matplotlib", "app")
    import gradio

    name = model
    transfer = load_transfer(config.transfer)
    model, processor = load_trained_model(name, config)
    encoder = find_image_encoder(model, config.encoder)
    clouds = Clouds(captions, model.config) if captions is not None else None

    def encode(image):
        try:
            images = [] if image is None else [Path(image).read_bytes()]
            return encode_images(model, processor, images, encoder=encoder, transfer=transfer)
        except InputError as error:
            raise gradio.Error(str(error)) from error

    def reply(image, question):
        if not question.strip():
            raise gradio.Error("Ask a question")
        vectors = encode(image)
        written = queue.SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            options = {"max_new_tokens": config.max_new_tokens, "show": written.put}
            answering = pool.submit(answer, model, processor, question, vectors, **options)
            answering.add_done_callback(lambda _: written.put(None))  # also after an error: else the next line hangs
            yield from iter(written.get, None)
            try:
                yield answering.result()
            except InputError as error:
                raise gradio.Error(str(error)) from error

    def locate(image):
        if image is None:
            return None, None
        (vector,) = encode(image)
        return clouds.nearest(vector), clouds.draw(vector)

    # Uploaded images are files in a temporary folder; gradio deletes them after an hour.
    with gradio.Blocks(title="Unicorn", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# Ask about an image\n{short_name(str(name))}")
        with gradio.Row():
            image = gradio.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=320)
            # Pass the uploaded file unopened: `encode` opens it, and reports what is wrong with it in one sentence.
            image.preprocess = lambda uploaded: uploaded and uploaded.path
            with gradio.Column():
                question = gradio.Textbox(label="Question", placeholder="What is in the image?")
                button = gradio.Button("Ask", variant="primary")
                said = gradio.Textbox(label="Answer", lines=5)
        gradio.Examples([[_example(), "What color is the background?"]], [image, question], label="Example")
        if clouds is not None:
            with gradio.Row():
                found = gradio.Dataframe(
                    headers=["cosine", "caption"], label="Nearest captions", wrap=True, column_widths=["22%", "78%"]
                )
                plot = gradio.Plot(show_label=False)
        gradio.on([button.click, question.submit], reply, [image, question], said, api_name="ask")
        if clouds is not None:
            image.change(locate, image, [found, plot], api_name="locate")
    return page


def serve_page(model, *, captions=None, config: AppConfig) -> None:
    """Serve the page until it is stopped.

    Raises:
        InputError: as in `make_page`, or the address cannot be used.
    """
    page = make_page(model, captions=captions, config=config)
    try:
        page.launch(server_name=config.host, server_port=config.port)
    except OSError as error:  # gradio raises it for a port that is in use
        raise InputError(f"The page cannot be served at {config.host}, port {config.port}: {error}") from error


def _example() -> str:
    """The file of an example image: a red circle on white."""
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((70, 70, 186, 186), fill="#d02020")
    path = Path(tempfile.mkdtemp(prefix="unicorn-example-")) / "circle.png"
    image.save(path)
    return str(path)


class Clouds:
    """Captions and their unit vectors: the text vectors, those transferred into image space, or both."""

    def __init__(self, source, config):
        from unicorn_hf.data.vector_sets import unit_rows
        from unicorn_hf.transfer.gap import Spread

        dataset = read_dataset(source)
        check_columns(dataset, "caption", source=source)
        columns = [column for column in _COLUMNS if column in dataset.column_names]
        if not columns:
            raise InputError(f"{source}: has neither image_embeds nor text_embeds; make them with `unicorn-hf embed`")
        if len(dataset) > _CAPTIONS:
            dataset = dataset.shuffle(seed=0).select(range(_CAPTIONS))
        self.captions, self.vectors = dataset["caption"][:], {}
        for column in columns:
            made_by = Origin.of_column(read_provenance(source), column)
            if differ := made_by.difference(Origin(config.image_encoder)):
                raise InputError(f"{source}: {column} has {differ[0]}, but the model reads vectors of {differ[1]}")
            rows = np.asarray(dataset.with_format("numpy", columns=[column])[column][:], np.float32)
            if rows.ndim != 2 or rows.shape[1] != config.embed_dim:
                raise InputError(
                    f"{source}: {column} has the shape {list(rows.shape)}; expected [, {config.embed_dim}]"
                )
            self.vectors[column], _ = unit_rows(rows)
        self.space = Spread(np.concatenate([rows[:_POINTS] for rows in self.vectors.values()]))

    def nearest(self, vector: np.ndarray) -> list[list]:
        """The captions nearest to an image vector, with their cosines; uses `image_embeds` if the dataset has them."""
        rows = self.vectors.get("image_embeds", self.vectors.get("text_embeds"))
        cosines = rows @ (vector / np.linalg.norm(vector))
        best = np.argsort(-cosines)[:_NEAREST]
        return [[f"{cosines[row]:.3f}", self.captions[row]] for row in best]

    def draw(self, vector: np.ndarray):
        """A figure of the captions' vectors and an image vector on two principal axes, before and after a transfer."""
        from matplotlib.figure import Figure

        def project(rows):
            return ((rows - self.space.mean) @ self.space.directions[:, :2]).T

        grey = "#808080"  # readable on a light and on a dark page, since the figure is transparent
        figure = Figure(figsize=(5.5, 3.6 * len(self.vectors)), layout="constrained", facecolor="none")
        panels = figure.subplots(len(self.vectors), squeeze=False, sharex=True, sharey=True).ravel()
        here = project(vector / np.linalg.norm(vector))
        for axes, (column, rows) in zip(panels, self.vectors.items(), strict=True):
            title, colour = _COLUMNS[column]
            axes.scatter(*project(rows[:_POINTS]), s=6, alpha=0.4, color=colour, label="captions", linewidths=0)
            axes.scatter(*here, s=260, marker="*", color="#E69F00", edgecolors="black", label="this image")
            axes.set_title(title, color=grey, fontsize="medium")
            axes.set_facecolor("none")
            axes.tick_params(colors=grey, labelsize="small")
            axes.spines[:].set_color(grey)
        legend = panels[0].legend(frameon=False, fontsize="small", labelcolor=grey)
        legend.legend_handles[0].set(sizes=[60], alpha=1)  # larger than in the plot, where a dot is hard to see
        legend.legend_handles[1].set(sizes=[120])
        return figure
