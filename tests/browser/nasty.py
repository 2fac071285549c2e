"""A page of names that would be links, pictures, formulas and icons, each wherever the dashboard puts names."""

import sys
from pathlib import Path

import streamlit as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from app.texts import plain

NAMES = [
    "[open](http://elsewhere.example)",
    "![seen](http://elsewhere.example/seen.png)",
    "<a href='http://elsewhere.example'>open</a> <img src='http://elsewhere.example/a.png'>",
    "http://elsewhere.example/a?b=c www.elsewhere.example someone@elsewhere.example mailto:someone@elsewhere.example",
    "<http://elsewhere.example> [a]: http://elsewhere.example",
    ":red[warning] :material/delete: :material_delete: :smile: :streamlit: ::rainbow[x] :help[y] x:blue :small",
    "$x^2$ $$y$$ `code` ``` **bold** __bold__ *it* _it_ ~~gone~~ ~sub~ \\[z\\] \\",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "12) item",
    "> quoted",
    "| a | b | :- | -: |",
    "---",
    "=== a -> b <- c <-> d -- e >= f <= g ~= h",
    "&lt;b&gt; &amp; &#60; &nbsp;",
    "[^1] [x] - [ ] task !",
    "a  b\nc\r\n\n# d\ttab",
    "timm:resnet18 · digits, 512 (a_b.safetensors), seed 1; 50% FLOPs",
    "\u202etxt.exe\u200b \x00 \ud800",
]


def texts() -> None:
    for name in NAMES:
        text = plain(name)
        st.markdown(text)
        st.markdown(f"**{text}** is not analysed yet.")
        st.caption(text)
        st.error(text)
        st.info(f"{text} · cancelled.")
        st.progress(0.5, text=f"**{text}** · step")
        st.metric(text, "1", text)
    st.pills("Pills", NAMES, format_func=plain)
    st.segmented_control("Segments", NAMES, format_func=plain)
    for place, (tab, name) in enumerate(zip(st.tabs([plain(name) for name in NAMES]), NAMES, strict=True)):
        with tab, st.expander(plain(name), expanded=True):
            st.button(plain(name), key=f"button-{place}", help=plain(name))
    st.table({"name": [plain(name) for name in NAMES]})
    st.selectbox("Options", NAMES[:-1])


if __name__ == "__main__":
    texts()
    st.toast(plain(NAMES[0]), duration="infinite")
    st.text("drawn")
