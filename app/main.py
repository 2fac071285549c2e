"""The dashboard's entry point: ``streamlit run app/main.py``, from any folder."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# ``streamlit run`` puts this file's folder on the path, where its modules would shadow others of the same name, and not
# the project's.
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry not in (str(HERE), str(ROOT)))]

# Many small operations of a job each wait for their turn beside the pages' threads: up to 5 ms each time by default.
sys.setswitchinterval(0.0005)

import streamlit as st  # noqa: E402


def page(name: str, title: str, icon: str, text: str, default: bool = False) -> st.Page:
    path = ROOT / "pages" / f"{name}.py"
    return st.Page(path, title=title, icon=f":material/{icon}:", url_path=name, default=default, help=text)


@st.cache_resource(show_spinner=False)
def use_threads() -> int:
    """Once for the server: changing the number while a network runs would disturb it.

    One core is left to the server and the browser: where a network's threads wait for a core that is busy with the page,
    the many small operations of an analysis took several times as long.
    """
    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) - 1))
    torch.set_num_threads(threads)
    return threads


st.set_page_config(page_title="ModHiFi Studio", page_icon=str(HERE / "icon.svg"), layout="wide")
st.logo(str(HERE / "logo.svg"), size="large", icon_image=str(HERE / "logo.svg"))
# What is chosen is written in the colour that buttons are filled with: dark enough for white upon it, too dark on a dark page.
st.html(
    "<style>[data-testid=stButtonGroup] [data-selected=true] p, [data-testid=stSliderThumbValue] p,"
    " [role=tab][aria-selected=true] p {color: light-dark(#1F66C1, #7FB2F5)}</style>"
)
pages = [
    page(
        "model",
        "Model",
        "deployed_code",
        "One pass over unlabelled images or text: no labels, no loss, no gradients.",
        True,
    ),
    page("importance", "Importance", "bar_chart_4_bars", "The fewest components that carry a layer are its HiFi set."),
    page(
        "bounds",
        "Bounds",
        "straighten",
        "How far an error in one layer reaches the logits, and how close the bound comes.",
    ),
    page("prune", "Prune", "content_cut", "The prediction follows the slider; Measure carries the plan out."),
    page("forget", "Forget", "ink_eraser", "Edits away what carries chosen classes, then tries to bring them back."),
    page("modalities", "Modalities", "balance", "Modalities that are trained together compete; what balances them."),
    page(
        "export", "Export", "download", "What was decided here can be carried away and replayed without the dashboard."
    ),
]
chosen = st.navigation(pages, position="top")
if then := st.session_state.pop("then", None):  # a callback leads to another page
    # Without a mapping the address would be emptied, which is refused where widgets are bound to it.
    st.switch_page(ROOT / "pages" / f"{then}.py", query_params={})
left, middle, right = st.columns([1.3, 0.8, 1], gap="medium", vertical_alignment="bottom")
with left:
    st.header(chosen.title, anchor=False)
    st.caption(chosen.help)
if "modhifi" not in sys.modules:  # seconds, on the first visit only: the frame of the page is there already
    with st.spinner("Loading PyTorch, once for this server"):
        import modhifi  # noqa: F401
use_threads()
with right:
    from app.session import choose_group, choose_study

    study = choose_study().study
with middle:
    if study is not None:
        choose_group(study)
from modhifi.errors import UserError  # noqa: E402

try:
    chosen.run()
except UserError as error:  # a file of the cache that is damaged, or that somebody took away
    st.error(str(error), icon=":material/error:")
