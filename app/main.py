"""Entry point of the dashboard: ``streamlit run app/main.py``, from any folder."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# ``streamlit run`` puts this file's folder on the path, where its modules shadow others of the same name, but not the
# project's root.
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry not in (str(HERE), str(ROOT)))]

# By default each of a job's many small operations may wait 5 ms for the threads of the pages.
sys.setswitchinterval(0.0005)

import streamlit as st  # noqa: E402


def page(name: str, title: str, icon: str, text: str, default: bool = False) -> st.Page:
    path = ROOT / "pages" / f"{name}.py"
    return st.Page(path, title=title, icon=f":material/{icon}:", url_path=name, default=default, help=text)


@st.cache_resource(show_spinner=False)
def prepare_server() -> int:
    """Says whose code may run, and sets PyTorch's thread count; once per server, because changing it would disturb a running
    network.

    One core is left to the server and the browser. If a network's threads have to wait for a core that is busy with a
    page, the many small operations of an analysis take several times as long.
    """
    import torch

    from app.offered import restrict_code

    restrict_code()
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) - 1))
    torch.set_num_threads(threads)
    return threads


st.set_page_config(page_title="ModHiFi Studio", page_icon=str(HERE / "icon.svg"), layout="wide")
st.logo(str(HERE / "logo.svg"), size="large", icon_image=str(HERE / "logo.svg"))
# Streamlit writes selected labels in the colour that fills buttons, which is too dark on a dark page.
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
    page(
        "importance",
        "Importance",
        "bar_chart_4_bars",
        "Which components carry the output: the smallest sufficient set is the HiFi set.",
    ),
    page(
        "bounds",
        "Bounds",
        "straighten",
        "How much an error in a layer can grow, and how tight the bound is.",
    ),
    page("prune", "Prune", "content_cut", "Predictions follow the slider. Measure applies the plan and tests it."),
    page(
        "forget",
        "Forget",
        "ink_eraser",
        "Remove classes, then attack the result to see whether they return.",
    ),
    page(
        "modalities", "Modalities", "balance", "Modalities trained together compete; gradient modulation balances them."
    ),
    page(
        "export",
        "Export",
        "download",
        "Download a plan, its network and a report, and reproduce them.",
    ),
]
chosen = st.navigation(pages, position="top")
if then := st.session_state.pop("then", None):  # a callback opens another page
    # Without a mapping Streamlit would clear the address, which fails while widgets are bound to it.
    st.switch_page(ROOT / "pages" / f"{then}.py", query_params={})
left, middle, right = st.columns([1.3, 0.8, 1], gap="medium", vertical_alignment="bottom")
with left:
    st.header(chosen.title, anchor=False)
    st.caption(chosen.help)
if "modhifi" not in sys.modules:  # takes seconds, on the first visit only; the page's frame is already visible
    with st.spinner("Loading PyTorch (once per server)"):
        import modhifi  # noqa: F401
prepare_server()
with right:
    from app.model_form import received
    from app.session import choose_group, choose_study, library, owner

    received(library().of(owner()))
    study = choose_study().study
with middle:
    if study is not None:
        choose_group(study)
from app import components as ui  # noqa: E402
from modhifi.errors import user_error  # noqa: E402

try:
    chosen.run()
except Exception as error:
    known = user_error(error)  # a file of the cache is damaged or was deleted, the disk is full
    if known is None:
        raise
    ui.fault(known)
