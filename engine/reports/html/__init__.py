"""The self-contained HTML report. Python computes labels and formatted values; the templates hold all HTML."""
