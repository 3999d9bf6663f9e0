-- Takes one token from the bucket KEYS[1]: what src/bucket.rs does, on Redis' own clock.
--
-- ARGV: capacity in tokens; millionths of a token gained per second; milliseconds to keep an idle bucket at least; a
-- number that the reply repeats; capacity and millionths per second at the other health. No more: before AUTH, Redis reads
-- commands of ten words at most, and answers longer ones as a protocol error instead of NOAUTH.
-- Reply: that number, 1 or 0 for admitted or not, tokens left, Unix time.
--
-- Lua counts in doubles, exact up to 2^53. So tokens are whole ones and units of 1e-12, and time is seconds and
-- microseconds: no sum or product below comes near that bound before the year 2240.
local capacity = tonumber(ARGV[1])
local rate_micro = tonumber(ARGV[2])
local rate = math.floor(rate_micro / 1000000)
rate_micro = rate_micro % 1000000

local function decimal(text, digits)
  local whole, fraction = string.match(text or '', '^(%d+)%.?(%d*)$')
  if not whole or #whole > 10 or #fraction > digits then return nil end
  return tonumber(whole), tonumber(fraction .. string.rep('0', digits - #fraction))
end

local time = redis.call('TIME')
local now, now_us = tonumber(time[1]), tonumber(time[2])
local stored = redis.call('HMGET', KEYS[1], 'tokens', 'last_refill')
local tokens, pico = decimal(stored[1], 12)
local last, last_us = decimal(stored[2], 6)
local stepped_back = false

if tokens and last then
  local seconds, us = now - last, now_us - last_us
  if us < 0 then seconds, us = seconds - 1, us + 1000000 end
  stepped_back = seconds < 0
  if not stepped_back then
    local micro = seconds * rate_micro + us * rate
    pico = pico + us * rate_micro + micro % 1000000 * 1000000
    tokens = tokens + seconds * rate + math.floor(micro / 1000000) + math.floor(pico / 1000000000000)
    pico = pico % 1000000000000
  end
end
if not tokens or not last or tokens >= capacity then tokens, pico = capacity, 0 end

local admitted = tokens >= 1
if admitted then tokens = tokens - 1 end
local tokens_text = string.format('%.0f.%012.0f', tokens, pico)
local now_text = string.format('%.0f.%06.0f', now, now_us)
if admitted or stepped_back then
  redis.call('HSET', KEYS[1], 'tokens', tokens_text, 'last_refill', now_text)
end

-- Kept until it is full again whichever health holds by then. Doubles are exact enough for milliseconds rounded up.
local keep = tonumber(ARGV[3])
for _, limit in ipairs({{capacity, rate * 1000000 + rate_micro}, {tonumber(ARGV[5]), tonumber(ARGV[6])}}) do
  local missing = limit[1] - tokens - pico / 1000000000000
  if missing > 0 then keep = math.max(keep, math.floor(missing / limit[2] * 1000000000) + 1) end
end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep))
return string.format('%s %d %s %s', ARGV[4], admitted and 1 or 0, tokens_text, now_text)
