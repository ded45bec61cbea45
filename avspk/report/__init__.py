"""Report of a run as one self-contained HTML page."""

from avspk.common.extras import explained

with explained():
    from avspk.report.build import write_report

__all__ = ["write_report"]
