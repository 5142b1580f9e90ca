"""Asks for flags as a service would, through the OpenFeature SDK, and prints what it was told.

usage: ofrep.py URL CALLS, the service's token in $TOKEN. CALLS are [[type, flag, default, context], ...].
"""

import json
import os
import sys

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

url, calls = sys.argv[1:]
token = os.environ["TOKEN"]
api.set_provider(OFREPProvider(url, headers_factory=lambda: {"Authorization": f"Bearer {token}"}))
client = api.get_client()
for kind, flag, default, attributes in json.loads(calls):
    context = EvaluationContext(attributes.pop("targetingKey", None), attributes)
    details = getattr(client, f"get_{kind}_details")(flag, default, context)
    print(json.dumps([flag, details.value, details.variant, details.reason, details.error_code and details.error_code.value]))
