"""The dashboard: pages that the server writes whole, of what the REST API gives.

`routes` answers for each page, `facts` reads what stands on it, `states` draws the tree of states,
`showing` fills the templates, and `sessions` lets a browser in with an API key. Pages change
nothing: what does is sent by a page's script to the REST API.
"""
