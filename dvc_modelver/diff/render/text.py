def render_text(d, **k): return str(d)
