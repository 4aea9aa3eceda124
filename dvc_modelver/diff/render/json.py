def render_json(d): return str(d)
