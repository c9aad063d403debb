"""Looks of the page."""

import gradio as gr

# Without fonts from the network.
THEME = gr.themes.Default(
    primary_hue="orange",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)

CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
#title h1 { margin: 0; }
#title p { margin: 0.25rem 0 0; }
.audiox-error { color: var(--error-text-color, #b91c1c); background: var(--error-background-fill, #fef2f2);
  border: 1px solid var(--error-border-color, #b91c1c); border-radius: var(--radius-lg); padding: 0.5rem 0.75rem; }
.audiox-progress { display: grid; gap: 0.4rem; }
.audiox-progress progress { appearance: none; width: 100%; height: 0.6rem; border: 0; overflow: hidden;
  border-radius: 0.3rem; background: var(--border-color-primary); }
.audiox-progress progress::-webkit-progress-bar { background: var(--border-color-primary); }
.audiox-progress progress::-webkit-progress-value { background: var(--color-accent); }
.audiox-progress progress::-moz-progress-bar { background: var(--color-accent); }
.audiox-spans { position: relative; cursor: crosshair; touch-action: pan-y; user-select: none; line-height: 0; }
.audiox-spans img { width: 100%; height: 10rem; object-fit: fill; border-radius: var(--radius-lg); }
.audiox-spans .marks div { position: absolute; top: 0; bottom: 0; background: rgb(255 255 255 / 35%);
  border-inline: 2px solid white; pointer-events: none; }
#examples { flex-wrap: wrap; gap: 0.4rem; }
#examples button { flex: 0 1 auto; min-width: 0; }
#downloads { gap: 0.4rem; }
#downloads > * { min-width: 7.5rem; flex: 1 1 0; }
#picture img { width: 100%; border-radius: var(--radius-lg); }
#seed-row { align-items: end; }
#new-seed { flex: 0 1 auto; height: 42px; }
.audiox-code { display: grid; gap: 0.4rem; justify-items: end; }
.audiox-code pre { justify-self: stretch; margin: 0; padding: 0.6rem; max-height: 22rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font-family: var(--font-mono); font-size: var(--text-sm); color: var(--body-text-color);
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); }
.audiox-code button { padding: 0.2rem 0.8rem; border-radius: var(--radius-lg); color: var(--button-secondary-text-color);
  background: var(--button-secondary-background-fill); }
@media (max-width: 640px) {
  .gradio-container { padding: 0.5rem !important; }
  #runs { position: sticky; bottom: 0; z-index: 5; background: var(--body-background-fill); padding-block: 0.5rem; }
}
"""

# A sound that still plays stops when a new run starts. The inputs are passed on.
STOP_SOUNDS = """(...inputs) => {
  document.querySelectorAll('audio, video').forEach(player => player.pause());
  return inputs;
}"""
