"""The page: a picture of the plain functions in `visit`, made with Gradio.

Nothing of the machine can be read through it: pictures come from the visitor or are examples by name, uploads are
limited as pictures are everywhere, and the page asks no other server for anything.
"""

from collections.abc import Callable
from typing import Any

from ..extras import of_extra
from ..modeling.captioner_image_limits import MAX_BYTES, limit_of
from .shown_captioner import MOST_BEAMS, MOST_CANDIDATES, MOST_STEPS
from .visit import (
    CANDIDATE_HEAD,
    OWN_RULE,
    STEP_HEAD,
    Exhibition,
    candidate_rows,
    decoding_of,
    drawn_regions,
    maps_of_words,
    open_upload,
    rules_of,
    step_rows,
    table,
)

TITLE = "Image captioning"
_FONTS = ["system-ui", "sans-serif"]  # of the visitor's machine
_STYLE = """
.captions table.shown { width: 100%; border-collapse: collapse }
.captions table.shown, .captions table.shown * { border: 0 }
.captions table.shown :is(th, td) {
  text-align: left; vertical-align: top; padding: .3em .6em; border-bottom: 1px solid #8884
}
.images { height: auto !important }
.images .grid-wrap { height: auto !important; min-height: 0; max-height: none; overflow-y: auto }
.images .grid-container { padding-top: 2em; grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) }
#examples .grid-wrap { max-height: 360px }
#maps .grid-container { grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)) }
"""  # galleries have as many columns as there is room for, and are as high as their pictures


def build_page(exhibition: Exhibition, title: str = TITLE) -> Any:
    """Make the page.

    Args:
        exhibition ([`Exhibition`]): what it shows.
        title (`str`, defaults to `"Image captioning"`): its heading.

    Returns:
        `gradio.Blocks`: for [`open_page`], or to mount elsewhere.

    Raises:
        ImportError: Gradio is not installed; the message says how.
    """
    with of_extra():
        import gradio

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column(min_width=280):
                image = _uploaded_image()
                _add_examples(exhibition, image)
            with gradio.Column(min_width=280):
                settings, sentence = _add_settings(exhibition)
                button = gradio.Button("Caption", variant="primary", elem_id="caption")
        given = [image, *settings, *([] if sentence is None else [sentence])]
        _add_captions(exhibition, button, given)
        _add_words(exhibition, given)
        _add_steps(exhibition, given)
        _add_regions(exhibition, image)
    return page


def open_page(
    page: Any, host: str = "127.0.0.1", port: int | None = None, wait: bool = True, quiet: bool = False
) -> str:
    """Serve the page.

    Args:
        page (`gradio.Blocks`): of [`build_page`].
        host (`str`, defaults to `"127.0.0.1"`): address to listen on, by default of this machine alone.
        port (`int`, *optional*): by default the first free one from 7860.
        wait (`bool`, defaults to `True`): return only when it is stopped.
        quiet (`bool`, defaults to `False`): do not say where it is.

    Returns:
        `str`: its address.

    Raises:
        OSError: the port is taken.
    """
    import gradio

    theme = gradio.themes.Default(font=_FONTS, font_mono=["monospace"])
    _, address, _ = page.queue(default_concurrency_limit=1, max_size=32).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=quiet,
        inbrowser=False,
        show_error=True,
        max_file_size=limit_of("bytes", MAX_BYTES),
        theme=theme,
        css=_STYLE,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=not wait,
        footer_links=[],
    )
    return address


def _uploaded_image() -> Any:
    """A picture that the browser shows and `open_upload` opens; Gradio itself decodes nothing."""
    import gradio

    sources: Any = ["upload", "clipboard", "webcam"]
    image: Any = gradio.Image(
        label="Picture", type="filepath", image_mode=None, format="png", sources=sources, height=320, elem_id="picture"
    )
    # a class of its own would be written as a stub beside this file; Gradio has checked that the path is an upload
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _add_examples(exhibition: Exhibition, image: Any) -> None:
    import gradio

    examples = exhibition.examples
    if examples is None:
        return
    gallery = gradio.Gallery(
        examples.thumbnails(), label="Or one of these", allow_preview=False, interactive=False, elem_id="examples",
        elem_classes="images",
    )  # fmt: skip

    def choose(event: gradio.SelectData) -> Any:  # Gradio reads the annotation
        return _told(lambda: examples.open(examples.names[event.index]))

    gallery.select(choose, None, image)


def _add_settings(exhibition: Exhibition) -> tuple[list[Any], Any]:
    """Controls of the decoding in the order of `decoding_of`, and of a sentence, if a captioner looks at one."""
    import gradio

    captioners = exhibition.captioners
    words = any(captioner.writes_words for captioner in captioners)
    rules, steps = rules_of(captioners), bool(exhibition.denoising)
    with gradio.Accordion("Decoding", open=False, visible=bool(captioners)):
        controls = [
            gradio.Slider(1, MOST_CANDIDATES, 3, step=1, label="Captions"),
            gradio.Slider(1, MOST_BEAMS, 3, step=1, label="Beams, at least as many as captions", visible=words),
            gradio.Checkbox(False, label="Draw words by chance instead (of SCD-Net: the noise)"),
            gradio.Slider(0.1, 2.0, 1.0, step=0.1, label="Temperature of drawn words", visible=words),
            gradio.Slider(0, MOST_STEPS, 0, step=1, label="Steps of denoising; 0: its own", visible=steps),
            gradio.Radio([OWN_RULE, *rules], value=OWN_RULE, label="Decoding rule", visible=len(rules) > 1),
        ]
    if not any(captioner.takes_sentence for captioner in captioners):
        return controls, None
    return controls, gradio.Textbox(label="A sentence that was retrieved for the picture", max_length=1000)


def _add_captions(exhibition: Exhibition, button: Any, given: list[Any]) -> None:
    """A table for each captioner, side by side where there is room."""
    import gradio

    tables: list[Any] = []
    with gradio.Row(visible=bool(exhibition.captioners)):
        for captioner in exhibition.captioners:
            with gradio.Column(min_width=280):
                gradio.Markdown(f"### {_plain(captioner.name)}")
                tables.append(gradio.HTML(elem_classes="captions"))

    def caption(path: str | None, *settings: Any) -> list[Any]:
        decoding, sentence, image = _given(path, settings)
        shown: list[Any] = []
        for captioner in exhibition.captioners:
            rows, seconds = _told(candidate_rows, captioner, image, decoding, sentence)
            shown.append(f"{table(CANDIDATE_HEAD, rows)}<p>{seconds:.2f} s</p>")
        return shown

    button.click(caption, given, tables, api_name="caption")


def _add_words(exhibition: Exhibition, given: list[Any]) -> None:
    """Heat maps of the words of the likeliest caption of a captioner."""
    import gradio

    if not exhibition.captioners:
        return
    names = [captioner.name for captioner in exhibition.captioners]
    with gradio.Accordion("Where each word looked", open=False):
        name = gradio.Dropdown(names, value=names[0], label="Captioner", visible=len(names) > 1)
        button, method = gradio.Button("Show", elem_id="words"), gradio.Markdown()
        gallery = gradio.Gallery(label="Words of the likeliest caption", elem_id="maps", elem_classes="images")

    def show(chosen: str, path: str | None, *settings: Any) -> list[Any]:
        decoding, sentence, image = _given(path, settings)
        found = _told(maps_of_words, _told(exhibition.captioner, chosen), image, decoding, sentence)
        return [f"What is shown: {found.method}.", found.pictures()]

    button.click(show, [name, *given], [method, gallery], api_name="words")


def _add_steps(exhibition: Exhibition, given: list[Any]) -> None:
    """The sentence of a diffusion captioner in every step."""
    import gradio

    names = [captioner.name for captioner in exhibition.denoising]
    if not names:
        return
    with gradio.Accordion("How the sentence becomes clear", open=False):
        name = gradio.Dropdown(names, value=names[0], label="Captioner", visible=len(names) > 1)
        button = gradio.Button("Show", elem_id="steps")
        shown = gradio.HTML(elem_classes="captions")

    def show(chosen: str, path: str | None, *settings: Any) -> Any:
        decoding, sentence, image = _given(path, settings)
        return table(STEP_HEAD, _told(step_rows, _told(exhibition.captioner, chosen), image, decoding, sentence))

    button.click(show, [name, *given], shown, api_name="steps")


def _add_regions(exhibition: Exhibition, image: Any) -> None:
    """Regions that a detector finds in the picture."""
    import gradio

    names = list(exhibition.detectors)
    if not names:
        return
    with gradio.Accordion("Regions", open=not exhibition.captioners):
        name = gradio.Dropdown(names, value=names[0], label="Detector", visible=len(names) > 1)
        button, said = gradio.Button("Find", elem_id="regions"), gradio.Markdown()
        drawn = gradio.Image(label="Regions", type="pil", interactive=False)

    def show(chosen: str, path: str | None) -> Any:
        return _told(drawn_regions, exhibition.detectors[chosen], _told(open_upload, path))

    button.click(show, [name, image], [drawn, said], api_name="regions")


def _given(path: str | None, settings: tuple[Any, ...]) -> tuple[Any, str | None, Any]:
    """Decoding, sentence and picture of what a visitor has given."""
    decoding = _told(decoding_of, *settings[:6])
    return decoding, settings[6] if len(settings) > 6 else None, _told(open_upload, path)


def _told(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function, and show a visitor's mistake on the page."""
    import gradio

    try:
        return function(*arguments)
    except (ValueError, NotImplementedError) as error:
        raise gradio.Error(_plain(str(error)), print_exception=False) from error


def _plain(text: str) -> str:
    """Text that no browser takes for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
