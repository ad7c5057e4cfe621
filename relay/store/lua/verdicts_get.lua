-- What is known of a text. KEYS 1 the verdict. Returns it, or nothing. A repeat does the same.
return redis.call('GET', KEYS[1])
