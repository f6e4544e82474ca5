"""Reports: views of a run's records and results, never a second computation."""

from leaf_diffusion.reports.compare import write_comparison
from leaf_diffusion.reports.gallery import GalleryCell, GalleryRow, contact_sheet, gallery_rows, show_gallery
from leaf_diffusion.reports.headline import headline
from leaf_diffusion.reports.html import write_report
from leaf_diffusion.reports.table import results_table

__all__ = [
    "GalleryCell",
    "GalleryRow",
    "contact_sheet",
    "gallery_rows",
    "headline",
    "results_table",
    "show_gallery",
    "write_comparison",
    "write_report",
]
