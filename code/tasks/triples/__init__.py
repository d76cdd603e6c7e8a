"""From a few triples of subject, relation and object to a text: Tables 13 (DART) and 14 (WebNLG) of the paper."""
