"""Text to copy."""

from html import escape

import gradio as gr

# In Gradio's own components, the label belongs to the copy button instead of the text, or the height is wrong in a tab.
TEMPLATE = """
<div class="audiox-code">
  <pre tabindex="0" role="region" aria-label="NAME">${value}</pre>
  <button type="button">Copy</button>
</div>
"""
# Browsers have no clipboard on pages without HTTPS, except on this machine.
SCRIPT = """
element.addEventListener('click', async event => {
  const button = event.target.closest('button');
  if (!button) return;
  const text = element.querySelector('pre');
  try {
    await navigator.clipboard.writeText(text.textContent);
  } catch {
    getSelection().selectAllChildren(text);
    document.execCommand('copy');
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
});
"""


def code_box(name: str) -> gr.HTML:
    """Return a component that shows what `show_code` returns."""
    return gr.HTML("", html_template=TEMPLATE.replace("NAME", name), js_on_load=SCRIPT)


def show_code(text: str) -> str:
    """Return a text as the value of a component."""
    return escape(text)
