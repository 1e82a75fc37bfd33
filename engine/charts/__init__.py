"""Charts as Plotly figures for reports and pages, and the list of charts that page, poll and report share.

Imports every room above it up to studies, and no Streamlit.
"""
