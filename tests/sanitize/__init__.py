"""The native CPU library under the address, undefined-behaviour and thread sanitizers."""
