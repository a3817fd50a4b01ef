"""The one filter through which words leave this process: it takes out the secrets of URLs.

Whatever is printed, logged, raised or written to a file of a run passes :func:`redacted`, so that
no code that writes a message has to think of secrets. Two rules take them out:

1. *By form.* A URL loses its user, password, query (a signature) and fragment, wherever it comes
   from, a server's redirect included.
2. *By value.* :func:`learn` remembers the secrets of the command line, of the environment and of
   every URL that is parsed. What is telling (below) becomes ``***`` wherever it appears, also
   percent-encoded, decoded or escaped, as libraries quote pieces of URLs. The rest, such as the
   password "train", is taken out of URLs and of ``user:password`` alone, because it would also
   garble words that are no secret.

A secret is *telling* if it has at least 8 characters, or at least 5 of two kinds (letters of either
case, digits, others), and is no common word of this program.
"""

from autotimm.redaction.process import guard_process, guard_streams, shown_to_library
from autotimm.redaction.secrets import learn
from autotimm.redaction.urls import bare, user_part
from autotimm.redaction.values import redacted

__all__ = [
    "bare",
    "guard_process",
    "guard_streams",
    "learn",
    "redacted",
    "shown_to_library",
    "user_part",
]
