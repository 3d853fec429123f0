"""The report: one HTML page that makes no request, and the model card. Both show what was measured alone."""
