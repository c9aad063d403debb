"""The picture of a sound on which spans are drawn."""

import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr

from ...media import media_duration
from ...media.sound_picture import sound_picture

TEMPLATE = """
<div class="audiox-spans" data-duration="${value.duration}" aria-hidden="true">
  <img src="${value.picture}" alt="" draggable="false"><div class="marks"></div>
</div>
"""
# Drawing adds a span to the text box, which stays the one place of the value. The keyboard uses the text box.
SCRIPT = """
const box = () => document.querySelector('#spans textarea, #spans input');
const area = () => element.querySelector('.audiox-spans');
const duration = () => Number(area()?.dataset.duration || 0);
const spans = () => [...(box()?.value || '').matchAll(/([\\d.]+)\\s*[-\\u2013\\u2014]\\s*([\\d.]+)/g)]
  .map(found => [Number(found[1]), Number(found[2])]);
let start = null, end = null;

function mark(from, to) {
  const left = 100 * Math.min(from, to) / duration(), width = 100 * Math.abs(to - from) / duration();
  const bar = document.createElement('div');
  bar.style.left = `${left}%`;
  bar.style.width = `${Math.min(width, 100 - left)}%`;
  return bar;
}
function draw() {
  const marks = element.querySelector('.marks');
  if (!marks || !duration()) return;
  const all = start === null ? spans() : [...spans(), [start, end]];
  marks.replaceChildren(...all.map(span => mark(...span)));
}
function seconds(event) {
  const frame = area().getBoundingClientRect();
  return Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1) * duration();
}
element.addEventListener('pointerdown', event => {
  if (!duration() || !area().contains(event.target)) return;
  event.preventDefault();
  area().setPointerCapture(event.pointerId);
  start = end = seconds(event);
});
element.addEventListener('pointermove', event => {
  if (start === null) return;
  end = seconds(event);
  draw();
});
element.addEventListener('pointercancel', () => { start = null; draw(); });
element.addEventListener('pointerup', () => {
  if (start === null) return;
  const from = Math.min(start, end), to = Math.max(start, end);
  start = null;
  if (to - from >= 0.02) {
    const old = box().value.trim().replace(/,$/, '');
    box().value = `${old ? old + ', ' : ''}${from.toFixed(2)}-${to.toFixed(2)}`;
    box().dispatchEvent(new Event('input', { bubbles: true }));
  }
  draw();
});
document.addEventListener('input', event => { if (event.target === box()) draw(); });
watch('value', () => setTimeout(draw, 50));
setInterval(draw, 1000);
draw();
"""


def span_picture() -> gr.HTML:
    """Return the component. It shows what `show_sound` returns."""
    return gr.HTML(
        show_sound(None), html_template=TEMPLATE, js_on_load=SCRIPT, elem_id="span-picture", visible="hidden"
    )


def show_sound(path: str | None) -> dict[str, Any]:
    """Return the picture of a sound and its duration. A sound that cannot be read has no picture."""
    try:
        if path is None:
            raise ValueError
        duration = media_duration(path, "sound")
        picture = sound_picture(Path(path))
    except (ValueError, OSError):
        return {"picture": "data:,", "duration": 0}
    data = io.BytesIO()
    picture.save(data, "PNG")
    return {"picture": data_uri(data.getvalue()), "duration": round(duration, 6)}


def data_uri(picture: bytes) -> str:
    """Return a PNG picture as a URI."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
