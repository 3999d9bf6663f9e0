//! The bucket in Lua at any time, and what the bucket in Rust expects of it.

use dynamic_rate_limiter::bucket::{self, Bucket, Outcome, PICO_PER_TOKEN, Verdict, available_pico};
use dynamic_rate_limiter::store::redis::resp::push_command;
use dynamic_rate_limiter::store::redis::script::{Script, Take, TakeReply};
use harness::SECOND;
use harness::fake_redis::{kept_ms, parse_command, script_with_clock};
use harness::redis::Redis;
use redis::{Connection, FromRedisValue, RedisResult, from_redis_value};

/// A connection that sends the limiter's commands, and its own Redis.
pub struct Client {
    connection: Connection,
    pub redis: Redis,
}

impl Client {
    pub fn start() -> Self {
        let redis = Redis::start();
        Self { connection: redis.connect().expect("a connection"), redis }
    }

    fn send(&mut self, commands: &[u8]) {
        self.connection.send_packed_command(commands).expect("Redis reads");
    }

    fn reply<T: FromRedisValue>(&mut self) -> RedisResult<T> {
        Ok(from_redis_value(self.connection.recv_response()?.extract_error()?)?)
    }

    /// The script's reply to the limiter's own command.
    pub fn take(&mut self, take: &Take, sequence: u32, script: Script) -> RedisResult<TakeReply> {
        let mut command = Vec::new();
        take.push(&mut command, sequence, script);
        self.send(&command);
        let text: String = self.reply()?;
        Ok(TakeReply::parse(text.as_bytes()).expect("a reply of the script"))
    }
}

/// The stored fields `tokens` and `last_refill`, or `-` for each that is absent.
pub type Fields = (String, String);

/// The reply of the script, and what it leaves.
#[derive(Clone, Debug)]
pub struct ScriptResult {
    pub taken: TakeReply,
    pub fields: Fields,
    /// The expiry of the key; `None` if there is no key.
    pub kept_ms: Option<u64>,
}

/// Equal except for the time between two commands, and a millisecond that the script rounds up.
impl PartialEq for ScriptResult {
    fn eq(&self, other: &Self) -> bool {
        let is_near = match (self.kept_ms, other.kept_ms) {
            (Some(one), Some(other)) => one.abs_diff(other) <= 1_000,
            (one, other) => one == other,
        };
        is_near && (self.taken, &self.fields) == (other.taken, &other.fields)
    }
}

/// The bucket in Lua, at any time.
pub struct LuaBucket {
    client: Client,
    sha1: String,
    pub sequence: u32,
    /// Commands that are not sent yet.
    batch: Vec<u8>,
}

impl LuaBucket {
    pub fn start() -> Self {
        let client = Client::start();
        let sha1 = client.redis.command(&["SCRIPT", "LOAD", &script_with_result()]).text();
        Self { client, sha1, sequence: 0, batch: Vec::new() }
    }

    /// Adds the limiter's own command to the batch, with another script and a time.
    pub fn push(&mut self, take: &Take, now_us: u64) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut command = Vec::new();
        take.push(&mut command, self.sequence, Script::Hash);
        let (mut words, _) = parse_command(&command).expect("a command");
        words[1] = self.sha1.clone().into_bytes();
        words.extend([now_us / SECOND, now_us % SECOND].map(|part| part.to_string().into_bytes()));
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        push_command(&mut self.batch, &words);
    }

    /// Adds a change of fields to the batch; returns the number of replies.
    pub fn push_fields(&mut self, key: &str, fields: [Option<&[u8]>; 2]) -> usize {
        push_command(&mut self.batch, &[b"DEL", key.as_bytes()]);
        let present = ["tokens", "last_refill"].into_iter().zip(fields);
        let commands =
            present.filter_map(|(name, value)| Some([b"HSET", key.as_bytes(), name.as_bytes(), value?]));
        1 + commands.map(|command| push_command(&mut self.batch, &command)).count()
    }

    pub fn send(&mut self) {
        self.client.send(&std::mem::take(&mut self.batch));
    }

    pub fn result(&mut self) -> ScriptResult {
        let text: String = self.client.reply().expect("a reply");
        let parts: Vec<&str> = text.split('|').collect();
        let [taken, tokens, last_refill, kept_ms] = parts[..] else { panic!("{text}") };
        ScriptResult {
            taken: TakeReply::parse(taken.as_bytes()).expect("a reply of the script"),
            fields: (tokens.to_owned(), last_refill.to_owned()),
            // No key is kept for ever.
            kept_ms: (kept_ms != "-2").then(|| kept_ms.parse().expect("a time")),
        }
    }

    pub fn skip(&mut self, replies: usize) {
        for _ in 0..replies {
            self.client.reply::<redis::Value>().expect("a reply");
        }
    }

    pub fn run(&mut self, take: &Take, now_us: u64) -> ScriptResult {
        self.push(take, now_us);
        self.send();
        self.result()
    }

    pub fn put(&mut self, key: &str, fields: [Option<&[u8]>; 2]) {
        let replies = self.push_fields(key, fields);
        self.send();
        self.skip(replies);
    }
}

/// The script with the time as an argument, and with the stored fields and their expiry in its reply.
fn script_with_result() -> String {
    let timed = script_with_clock();
    format!(
        "local function take()\n{timed}\nend\n\
         local reply = take()\n\
         local stored = redis.call('HMGET', KEYS[1], 'tokens', 'last_refill')\n\
         return reply .. '|' .. (stored[1] or '-') .. '|' .. (stored[2] or '-') .. '|' ..\n\
         string.format('%.0f', redis.call('PTTL', KEYS[1]))"
    )
}

/// What Redis keeps of a bucket, and the bucket that it is.
pub struct Stored {
    pub fields: Fields,
    pub bucket: Option<Bucket>,
}

impl Stored {
    pub fn nothing() -> Self {
        Self { fields: ("-".to_owned(), "-".to_owned()), bucket: None }
    }

    pub fn of(bucket: Bucket) -> Self {
        let fields = (decimal(bucket.tokens_pico, 12), decimal(bucket.refilled_at_us, 6));
        Self { fields, bucket: Some(bucket) }
    }

    /// The fields as arguments of [`LuaBucket::put`].
    pub fn bytes(&self) -> [Option<&[u8]>; 2] {
        [&self.fields.0, &self.fields.1].map(|field| (field != "-").then_some(field.as_bytes()))
    }

    /// The expected result of the script, from the bucket in Rust.
    pub fn take(&mut self, take: &Take, sequence: u32, now_us: u64) -> (ScriptResult, Verdict) {
        let available = available_pico(self.bucket, take.limit, now_us);
        let (verdict, changed) = bucket::take(self.bucket, take.limit, now_us);
        let admitted = verdict.outcome == Outcome::Admitted;
        let tokens_pico = if admitted { available - PICO_PER_TOKEN } else { available };
        if let Some(bucket) = changed {
            *self = Self::of(bucket);
        }
        let taken = TakeReply { sequence, admitted, tokens_pico, now_us };
        let is_kept = self.bytes() != [None, None];
        let kept_ms = is_kept.then(|| kept_ms(take, tokens_pico));
        (ScriptResult { taken, fields: self.fields.clone(), kept_ms }, verdict)
    }
}

/// Units of one in 10^`digits`, as the script writes them.
pub fn decimal(units: u64, digits: u32) -> String {
    let one = 10_u64.pow(digits);
    format!("{}.{:0width$}", units / one, units % one, width = digits as usize)
}
