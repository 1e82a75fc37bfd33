"""The live views: Streamlit components that load our scripts and poll the routes in `dashboard.api`."""
