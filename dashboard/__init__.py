"""The Streamlit dashboard: pages in front of the engine. It never imports torch."""
