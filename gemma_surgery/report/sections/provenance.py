"""Where it comes from: recipe, versions, hashes and the command that makes it again."""

from __future__ import annotations

import shlex

from gemma_surgery import __version__
from gemma_surgery.report.material import Material
from gemma_surgery.report.sections.blocks import Block, Figure, Listing, Section, Table
from gemma_surgery.report.wording import visible


def command_again(material: Material) -> str:
    """The command that makes the same bytes again, with the recipe in a file."""
    names = (material.reference if material.reference_is_source else "ORIGINAL", material.outcome.name)
    source, output = (shlex.quote(visible(name)) for name in names)
    return f"gemma-surgery compress {source} -o {output} --recipe recipe.toml"


def provenance_section(material: Material) -> Section:
    """Identities, notes of the steps, hashes and the recipe."""
    outcome = material.outcome
    rows = [
        ("recipe", outcome.recipe_name),
        ("written by", f"gemma-surgery {outcome.version}"),
        ("report by", f"gemma-surgery {__version__}"),
        ("plan, sha256", outcome.plan_sha256),
        ("original, fingerprint", outcome.source_fingerprint),
        *(
            (f"profile of {step.name}, sha256", step.profile_sha256)
            for step in outcome.steps
            if step.profile_sha256
        ),
        *((("profile shown here, sha256", material.activity.sha256),) if material.activity else ()),
        *((f"original's {name}", f"{number:,} bytes") for name, number in outcome.source_files.items()),
    ]
    columns = (("what", "left"), ("identity", "left"))
    blocks: list[Block] = [Figure("identity", "Identity", None, table=Table("Identity", columns, rows))]
    notes = [(step.name, note) for step in outcome.steps for note in step.notes]
    if notes:
        heads = (("step", "left"), ("note", "left"))
        blocks.append(
            Figure("notes", "What the steps said", None, table=Table("Notes of the steps", heads, notes))
        )
    files = list(outcome.hashes.items())
    if files:
        heads = (("file", "left"), ("sha256", "left"))
        table = Table("Hashes of the side files", heads, files, folded=True)
        note = "Tensors have theirs in `surgery.json`; `gemma-surgery verify OUT` checks all of them."
        blocks.append(Figure("hashes", "Hashes", None, note, table=table))
    blocks.append(Listing("recipe", "recipe.toml", outcome.recipe_toml))
    blocks.append(Listing("again", "The same bytes again", command_again(material)))
    return Section("provenance", "Provenance", "", tuple(blocks))
