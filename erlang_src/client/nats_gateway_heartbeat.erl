%% Decides whether a client is still there, by when it last sent something and by how many bytes it
%% has taken since the PING.
-module(nats_gateway_heartbeat).

-export([new/0]).
-export([start/2]).
-export([heard/2]).
-export([was_heard/1]).
-export([wait_to_hear/1]).
-export([due_ms/3]).
-export([ping_sent/3]).
-export([is_taking/3]).

-export_type([heartbeat/0]).

-record(heartbeat, {
    %% whether the client has sent anything since `wait_to_hear/1' or the last PING
    heard = false :: boolean(),
    %% when it last sent something, in milliseconds of monotonic time
    heard_at = 0 :: integer(),
    %% bytes that the client had not taken yet at the PING
    behind = 0 :: non_neg_integer(),
    %% bytes that it had taken when `is_taking/3' was last asked
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

%% From now on, `was_heard/1' tells only of what the client sends later.
-spec wait_to_hear(heartbeat()) -> heartbeat().
wait_to_hear(Heartbeat) -> Heartbeat#heartbeat{heard = false}.

%% The time until a PING is due. The PING is due now if the result is 0 or less.
-spec due_ms(NowMs :: integer(), IntervalMs :: pos_integer(), heartbeat()) -> integer().
due_ms(Now, Interval, #heartbeat{heard_at = HeardAt}) -> HeardAt + Interval - Now.

-spec ping_sent(Behind :: non_neg_integer(), Taken :: integer(), heartbeat()) -> heartbeat().
ping_sent(Behind, Taken, Heartbeat) ->
    Heartbeat#heartbeat{heard = false, behind = Behind, taken = Taken}.

%% Whether the client is still reading what it was sent before the PING, so that its PONG cannot
%% have come yet. If it reads nothing, the write deadline ends the connection (nats_gateway_outbox).
-spec is_taking(Pending :: non_neg_integer(), Taken :: integer(), heartbeat()) ->
    {true, heartbeat()} | false.
is_taking(Pending, Taken, Heartbeat = #heartbeat{behind = Behind, taken = Before}) when
    Pending > 0; Behind > 0, Taken > Before
->
    {true, Heartbeat#heartbeat{taken = Taken}};
is_taking(_, _, _) ->
    false.
