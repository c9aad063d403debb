import ast
import re

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from audiox_diffusers.card_text import code, plain, string
from audiox_diffusers.training import LoraTraining, parse_args
from audiox_diffusers.training.cards import lora_card, training_card

HOSTILE = [
    "x\n```\n<img src=x onerror=alert(1)>\n# Heading",
    "# Heading",
    "text\n===",
    "---\ntags: [evil]\n---",
    "[link](javascript:alert(1)) ![picture](http://evil/x.png)",
    "`code` ``more`` ```",
    "</audio><script>alert(1)</script>",
    "&lt;b&gt; &#60;b&#62;",
    "- item",
    "1. item",
    "> quote",
    "| a | b |\n|---|---|",
    "*bold* _italic_ ~~gone~~",
    'quote " and \\ backslash \\',
    "\x1b[31mred\x1b[0m \x07 \x00",
    "right\u202eleft \u2028 line \u2029 paragraph",
    "half \ud800 of a character",
    "<!-- comment",
    "$x$",
]


def tokens(markdown: str) -> set[str]:
    """Return the kinds of tokens in a rendered text."""
    parsed = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    return {token.type for block in parsed for token in (block, *(block.children or []))}


@pytest.mark.parametrize("text", HOSTILE)
def test_text_has_no_meaning(text):
    assert tokens(f"{plain(text)}:") == {"paragraph_open", "inline", "text", "paragraph_close"} | (
        {"text_special"} & tokens(f"{plain(text)}:")
    )
    assert tokens(f"Words: {code(text)}.") == {"paragraph_open", "inline", "text", "code_inline", "paragraph_close"}
    for written in (plain(text), code(text), string(text)):
        assert "\n" not in written and all(char.isprintable() for char in written)
        written.encode()
    assert isinstance(ast.literal_eval(string(text)), str)


def test_ordinary_text_stays():
    for text in ("a bell rings", "Ein Hund bellt, 3 mal", "雨の音", "rock & roll"):
        assert MarkdownIt().render(plain(text)).strip() == f"<p>{text.replace('&', '&amp;')}</p>"
        assert code(text) == f"`{text}`" and ast.literal_eval(string(text)) == text


def headings(card: ModelCard) -> list[str]:
    parsed = MarkdownIt("gfm-like", {"linkify": False}).parse(card.text)
    return [after.content for token, after in zip(parsed, parsed[1:]) if token.type == "heading_open"]


def html(card: ModelCard) -> str:
    blocks = MarkdownIt().parse(card.text)
    parts = [token for block in blocks for token in (block, *(block.children or []))]
    return "".join(token.content for token in parts if token.type in ("html_block", "html_inline"))


@pytest.mark.parametrize("text", HOSTILE)
def test_card_of_an_adapter(text, tmp_path):
    """Trigger words, captions, the licence and the name of the folder are text."""
    folder = tmp_path / re.sub(r"[/\x00\ud800]", "", text)
    words = ["--pretrained_model_name_or_path", "m", "--dataset", "d", "--max_train_steps", "1"]
    words += ["--output_dir", str(folder), "--trigger_words", f"x{text}", "--data_license", f"x{text}"]
    config = {"r": 4, "lora_alpha": 8, "use_dora": False, "use_rslora": False, "target_modules": {"to_q"}}
    args = parse_args(words, LoraTraining)
    card = ModelCard(lora_card(args, config, [("000.wav", text)], [{"step": 1, "loss": 0.5}]))
    assert len(headings(card)) == 5 and headings(card)[1:] == ["Usage", "Samples", "Training", "Licence"]
    assert "evil" not in str(card.data.tags) and card.data.library_name == "diffusers"
    assert html(card) == '<audio controls src="samples/000.wav"></audio>'
    (block,) = re.findall(r"^```python\n(.*?)^```", card.text, re.S | re.M)
    compile(block, "card", "exec")
    assert all(char.isprintable() or char == "\n" for char in card.content)


@pytest.mark.parametrize("text", HOSTILE)
def test_card_of_a_pipeline(text, tmp_path, small_pipe):
    folder = tmp_path / re.sub(r"[/\x00\ud800]", "", text)
    words = ["--pretrained_model_name_or_path", str(folder), "--dataset", str(folder), "--max_train_steps", "1"]
    args = parse_args([*words, "--output_dir", str(folder), "--hub_model_id", text])
    card = ModelCard(training_card(args, small_pipe, [{"step": 1, "loss": 0.5}]))
    assert len(headings(card)) == 4 and headings(card)[1:] == ["Usage", "Training", "Licence"]
    assert html(card) == ""
    (block,) = re.findall(r"^```python\n(.*?)^```", card.text, re.S | re.M)
    compile(block, "card", "exec")
    assert all(char.isprintable() or char == "\n" for char in card.content)


@pytest.fixture(scope="module")
def small_pipe():
    from audiox_diffusers.testing import create_small_pipeline

    return create_small_pipeline()
