"""How active neurons are, and how much each layer changes."""

from __future__ import annotations

from gemma_surgery.report.activity import SCALE, THRESHOLD, Activity
from gemma_surgery.report.material import Material
from gemma_surgery.report.plots import column_chart
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Section, Table
from gemma_surgery.report.svg import tag
from gemma_surgery.report.wording import percent, three_digits

# So many lie low: their rows would be bars.
FEW_LAYERS = 14
COMMAND = "gemma-surgery profile ORIGINAL -o profile.safetensors"


def neurons_section(material: Material) -> Section:
    """Heatmap of layers by neurons, and block influence."""
    activity = material.activity
    if activity is None:
        missing = Missing("Activity of neurons and influence of layers", COMMAND)
        return Section("neurons", "Neurons and layers", "", (missing,))
    of = "the original" if activity.of_source else "the output"
    tokens = f", on {activity.num_tokens:,} tokens" if activity.num_tokens else ""
    lead = f"Measured on {of}{tokens}."
    return Section("neurons", "Neurons and layers", lead, (_heatmap(activity), _influence(activity)))


def _heatmap(activity: Activity) -> Block:
    title = "Mean absolute activation of neurons, by layer"
    numbers = ",".join(str(layer.index) for layer in activity.layers)
    widths = ",".join(str(len(layer.activations)) for layer in activity.layers)
    canvas = tag(
        "canvas",
        id="heatmap-canvas",
        tabindex="0",
        role="img",
        aria_label=f"{title}: layers from top to bottom, neurons from most to least active",
        width=activity.num_columns,
        height=len(activity.layers),
        data_cells=activity.cells,
        data_layers=numbers,
        data_widths=widths,
        data_lowest=SCALE["lowest"],
        data_highest=SCALE["highest"],
        data_levels=SCALE["levels"],
        data_colours=SCALE["colours"],
    )
    first, last = activity.layers[0].index, activity.layers[-1].index
    ends = tag("div", tag("span", f"layer {first}"), tag("span", f"layer {last}"), class_="ends upright")
    below = tag("div", tag("span", "most active"), tag("span", "least active"), class_="ends")
    still = tag("noscript", tag("img", src=activity.still_picture, alt=title, class_="still"))
    rows = tag("div", ends, canvas, class_="heatmap few" if len(activity.layers) <= FEW_LAYERS else "heatmap")
    ramp = tag(
        "div",
        tag("span", f"≤ {SCALE['lowest']}"),
        tag("canvas", id="heatmap-ramp", width="240", height="1", aria_hidden="true"),
        tag("span", f"≥ {SCALE['highest']:g}"),
        class_="ramp",
    )
    readout = tag(
        "output",
        "Point at a cell, tap it, or use the arrow keys.",
        id="heatmap-value",
        **{"for": "heatmap-canvas"},
    )
    table = [
        (str(layer.index), f"{len(layer.activations):,}", three_digits(float(layer.activations.mean())),
         percent(layer.active_share))
        for layer in activity.layers
    ]  # fmt: skip
    columns = (
        ("layer", "right"),
        ("neurons", "right"),
        ("mean activation", "right"),
        (f"at {THRESHOLD:g} or above", "right"),
    )
    return Figure(
        "heatmap",
        title,
        tag("div", tag("div", rows, below, readout, ramp, class_="scripted"), still),
        "Mean of |gelu(gate)| over tokens; the neurons of every layer are sorted. Colours are logarithmic.",
        table=Table(title, columns, table, folded=True),
    )


def _influence(activity: Activity) -> Block:
    title = "Block influence by layer"
    known = [(layer.index, layer.influence) for layer in activity.layers if layer.influence is not None]
    if not known:
        return Missing(title, COMMAND)
    values = [(str(index), influence) for index, influence in known]
    rows = [(label, three_digits(value)) for label, value in values]
    columns = (("layer", "right"), ("block influence", "right"))
    return Figure(
        "influence",
        title,
        column_chart(title, values, "1 − cosine of input and output", "layer"),
        "How much a layer turns the states that pass through it: those with the least are dropped first.",
        table=Table(title, columns, rows, folded=True),
    )
