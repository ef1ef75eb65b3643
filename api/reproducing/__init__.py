"""Old replies again: a request is answered once more, on the state that the reply came from.

The routes that answer are the server's own, around an engine that shows the rebuilt state.
"""
