"""Every page's file, relative to `streamlit_app.py`: one place for links to agree on."""

FEDERATIONS = "app_pages/federations.py"
NEW_FEDERATION = "app_pages/new_federation.py"
FEDERATION = "app_pages/federation.py"
RUN = "app_pages/run.py"
COMPARISON = "app_pages/comparison.py"
CLIENTS = "app_pages/clients.py"
USERS = "app_pages/users.py"
