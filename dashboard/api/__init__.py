"""The JSON routes that the live views poll. They read the store and never write; they import no widgets and no Streamlit."""
