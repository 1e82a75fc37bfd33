"""Reports: runs frozen into one document, its HTML page, redaction, exports and imports.

This package imports rooms from `common` to `charts`; it knows no Streamlit and no PyTorch.
"""
