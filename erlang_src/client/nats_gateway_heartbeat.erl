%% Whether a client is still there: when it was heard last, and what it has taken since the PING.
-module(nats_gateway_heartbeat).

-export([new/0]).
-export([start/2]).
-export([heard/2]).
-export([was_heard/1]).
-export([listen/1]).
-export([due_ms/3]).
-export([ping/3]).
-export([is_taking/3]).

-export_type([heartbeat/0]).

-record(heartbeat, {
    %% anything from the client since `listen/1', and when: milliseconds of monotonic time
    heard = false :: boolean(),
    heard_at = 0 :: integer(),
    %% bytes that the client had still to take at the PING
    behind = 0 :: non_neg_integer(),
    %% bytes that it had taken at the last look
    taken = 0 :: integer()
}).

-opaque heartbeat() :: #heartbeat{}.

-spec new() -> heartbeat().
new() -> #heartbeat{}.

-spec start(NowMs :: integer(), heartbeat()) -> heartbeat().
start(Now, Heartbeat) -> Heartbeat#heartbeat{heard_at = Now}.

-spec heard(NowMs :: integer(), heartbeat()) -> heartbeat().
heard(Now, Heartbeat) -> Heartbeat#heartbeat{heard = true, heard_at = Now}.

-spec was_heard(heartbeat()) -> boolean().
was_heard(#heartbeat{heard = Heard}) -> Heard.

%% What comes from now on counts.
-spec listen(heartbeat()) -> heartbeat().
listen(Heartbeat) -> Heartbeat#heartbeat{heard = false}.

%% Until a PING is due; not above 0: now.
-spec due_ms(NowMs :: integer(), IntervalMs :: pos_integer(), heartbeat()) -> integer().
due_ms(Now, Interval, #heartbeat{heard_at = HeardAt}) -> HeardAt + Interval - Now.

%% A PING goes out.
-spec ping(Behind :: non_neg_integer(), Taken :: integer(), heartbeat()) -> heartbeat().
ping(Behind, Taken, Heartbeat) -> Heartbeat#heartbeat{heard = false, behind = Behind, taken = Taken}.

%% Whether the client has still to read what it was sent before the PING. If it takes nothing of that,
%% the write deadline is for it.
-spec is_taking(Pending :: non_neg_integer(), Taken :: integer(), heartbeat()) ->
    {true, heartbeat()} | false.
is_taking(Pending, Taken, Heartbeat = #heartbeat{behind = Behind, taken = Before}) when
    Pending > 0; Behind > 0, Taken > Before
->
    {true, Heartbeat#heartbeat{taken = Taken}};
is_taking(_, _, _) ->
    false.
