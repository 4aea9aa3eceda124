"""Three versions of a model become one: decided per tensor from tables, combined by strategies, written streaming."""
