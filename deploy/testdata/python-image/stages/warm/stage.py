def process(b):
    return b
