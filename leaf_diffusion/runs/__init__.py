"""What a run is (spec), where it is kept (store), how it is read back (read), and what it came to (results)."""

from leaf_diffusion.images import png_ok
from leaf_diffusion.runs.files import RunFolderError, atomic_write
from leaf_diffusion.runs.log import DamagedRecords
from leaf_diffusion.runs.read import Run, load_run
from leaf_diffusion.runs.records import FIELDS, SWAP_FIELDS, Values, prompt_values
from leaf_diffusion.runs.results import ResultRow, RunResults, results_csv, write_results
from leaf_diffusion.runs.spec import RunSpec, environment
from leaf_diffusion.runs.store import RunStore, image_name

__all__ = [
    "FIELDS",
    "SWAP_FIELDS",
    "DamagedRecords",
    "ResultRow",
    "Run",
    "RunFolderError",
    "RunResults",
    "RunSpec",
    "RunStore",
    "Values",
    "atomic_write",
    "environment",
    "image_name",
    "load_run",
    "png_ok",
    "prompt_values",
    "results_csv",
    "write_results",
]
