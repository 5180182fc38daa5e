%% A connection to an MQTT 5 broker, as a value in the process that uses it. It handles CONNECT,
%% packet identifiers, the broker's Receive Maximum and what waits behind it, acknowledgements,
%% keepalive, a barrier, and the end. It knows nothing of NATS.
%%
%% The caller sends packets with tags, passes on every message that its process gets, and acts on
%% the events that are returned. No call waits for the broker.
%%
%% The broker handles the packets of a connection in order. So when it answers a PINGREQ, it has
%% seen everything that was sent before. That is the barrier. Some brokers do not keep this order:
%% see `pace_echoes/1'.
-module(nats_gateway_mqtt_client).

-export([start/3]).
-export([send/2]).
-export([ready/1]).
-export([barrier/2]).
-export([handle_info/2]).
-export([hand_over/2]).
-export([take_over/2]).
-export([pace_echoes/1]).
-export([subscribed/2]).
-export([unsubscribed/2]).
-export([stop/1]).
-export([stop/2]).

-export_type([client/0, options/0, item/0, tag/0, event/0, ending/0]).

-include("nats_gateway_mqtt.hrl").

-type options() :: #{
    %% how long to wait for CONNACK, in milliseconds
    timeout := non_neg_integer(),
    %% the client's own keepalive in seconds; a keepalive in CONNACK has precedence
    keepalive := pos_integer(),
    %% the largest packet that the broker may send, in bytes
    max_received := pos_integer(),
    %% whether to find out which packet the broker hangs up on (nats_gateway_suspects)
    watched := boolean()
}.

%% The caller's name for a packet. The answer comes with the same tag.
-type tag() :: term().

%% A packet that gets its identifier when it is sent. `none' means that it has no identifier and no
%% answer.
-type item() :: {nats_gateway_mqtt_nif:packet(), tag() | none}.

-type event() ::
    {connected, nats_gateway_mqtt_nif:properties()}
    %% the broker has refused the CONNECT; the connection has ended
    | {refused, Reason :: byte(), nats_gateway_mqtt_nif:properties()}
    %% a message, which is acknowledged
    | #publish{}
    %% a message that was larger than allowed; it is acknowledged, too
    | {too_large, Topic :: binary(), Size :: pos_integer(), Max :: pos_integer()}
    | {answer, tag(), Reason :: byte()}
    %% completions of `{wait, Client}'
    | ready
    | barrier
    %% any other packet, between `hand_over/2' and `take_over/2'
    | {packet, nats_gateway_mqtt_nif:received()}
    %% the end, which is reported once; a packet may have caused it
    | {closed, ending(), nats_gateway_suspects:blame()}.

-type ending() ::
    %% to the CONNECT
    no_answer
    %% the broker closed the connection without a DISCONNECT
    | closed
    | {disconnect, Reason :: byte(), nats_gateway_mqtt_nif:properties()}
    %% no answer to the PINGREQ of the keepalive
    | silent
    %% the broker has taken nothing for too long
    | does_not_read
    | socket_failed
    %% the broker breaks the protocol
    | {fault, protocol_error | nats_gateway_mqtt_nif:decode_error()}.

-type waiting() ::
    none
    %% until the broker has taken more of what it was sent
    | ready
    %% until the queue is empty, and no message with QoS 2 is under way
    | barrier
    %% until that many PINGRESP have come and no answer is missing, and then so many times again;
    %% `moment' means that the next PINGREQ has to wait for a moment
    | {barrier, Pings :: pos_integer() | moment, Again :: 0 | 1}.

-record(keepalive, {
    seconds :: pos_integer(),
    %% the timeout for CONNACK, or the next tick
    timer :: undefined | reference(),
    %% since the last tick; `probed' means that the last tick already waited for a PINGRESP
    sent = false :: boolean(),
    heard = false :: boolean(),
    probed = false :: boolean()
}).

%% A message with QoS 2. After the PUBREC the reason in it is known, and the PUBCOMP has still to come.
-record(exchange, {
    tag :: tag(),
    received = none :: none | byte()
}).

-type exchange() :: #exchange{}.

-record(client, {
    socket :: undefined | nats_gateway_transport:socket(),
    phase = login :: login | open | handed_over | closed,
    keepalive :: #keepalive{},
    input :: nats_gateway_mqtt_input:input(),
    %% how many chunks the socket may still send
    chunks :: non_neg_integer(),
    %% whether the broker must be told that its last bytes have arrived, and the message that does it
    %% is in the mailbox; what was sent since then has told it already
    acknowledgement = none :: none | due | carried,
    %% requests without an answer, how many more the broker takes, and what waits behind them
    requests = #{} :: #{nats_gateway_mqtt_nif:packet_id() => tag() | exchange()},
    %% how many of them are messages with QoS 2
    exchanges = 0 :: non_neg_integer(),
    next_packet_id = 1 :: nats_gateway_mqtt_nif:packet_id(),
    quota = 65535 :: non_neg_integer(),
    queue = queue:new() :: queue:queue(item()),
    %% the bytes in the socket, and the timer for the next look at them
    backlog = nats_gateway_backlog:new() :: nats_gateway_backlog:backlog(),
    looking = false :: false | reference(),
    %% nothing can be sent any more; the end will come as a message
    broken = false :: boolean(),
    waiting = none :: waiting(),
    %% whether any packet that needs processing was sent since the last barrier
    unflushed = false :: boolean(),
    pings_sent = 0 :: non_neg_integer(),
    pings_answered = 0 :: non_neg_integer(),
    %% the time of the last PINGREQ, in milliseconds
    pinged_at = 0 :: integer(),
    %% the PINGREQ whose answer is timed, and when it was sent: native units of monotonic time
    timed = none :: none | {Ping :: pos_integer(), At :: integer()},
    %% for a broker that cannot take much of what comes back to its client
    echoes = none :: none | nats_gateway_echoes:echoes(),
    suspects :: nats_gateway_suspects:suspects()
}).

-opaque client() :: #client{}.

%% How long a closing connection may take to deliver its last bytes.
-define(LINGER, 5000).

-define(SEGMENT, 1460).

%% The socket may send more chunks when it may still send so many.
-define(LOW, 16).

%% The limit is far below the 65535 packet identifiers for three reasons: a free identifier is found
%% soon, the broker's answers to all of them come soon, and all are encoded within the time of one
%% NIF call.
-define(MAX_REQUESTS, 4096).
-define(MAX_PACKET_ID, 65535).
%% How much may wait in the socket before the client's input has to wait. A broker that reads takes
%% it between two looks.
-define(MAX_BACKLOG, 1048576).
%% Times between two looks at the socket: while the client waits for it, and to see whether it moves
%% at all.
-define(LOOK_SOON_MS, 5).
-define(LOOK_MS, 1000).
%% EMQX needs this moment to see that there is nothing to read (nats_gateway_echoes).
-define(PING_AGAIN_MS, 2).
-define(MAX_PING_AGAIN_MS, 50).

%% Reason codes.
-define(NORMAL_DISCONNECTION, 16#00).
-define(UNSPECIFIED_ERROR, 16#80).
-define(MALFORMED_PACKET, 16#81).
-define(PROTOCOL_ERROR, 16#82).
-define(PACKET_TOO_LARGE, 16#95).

%% -------------------------------------------------------------------------------------------
%% Login

%% The calling process must own the socket. The event is `connected', `refused' or `closed'.
-spec start(nats_gateway_transport:socket(), #connect{}, options()) ->
    {ok, client()} | {error, term()}.
start(Socket, Connect, Options) ->
    #{timeout := Timeout, keepalive := Seconds, max_received := Max, watched := Watched} = Options,
    case nats_gateway_transport:send(Socket, nats_gateway_mqtt_nif:encode([Connect])) of
        ok ->
            case nats_gateway_transport:activate(Socket) of
                ok ->
                    {ok, start_timer(Timeout, #client{
                        socket = Socket,
                        keepalive = #keepalive{seconds = Seconds},
                        input = nats_gateway_mqtt_input:new(Max),
                        chunks = nats_gateway_transport:max_active_n(),
                        suspects = nats_gateway_suspects:new(Watched)
                    })};
                Error ->
                    abort(Socket, Error)
            end;
        Error ->
            abort(Socket, Error)
    end.

connected(Properties, Client = #client{keepalive = KeepAlive}) ->
    Seconds =
        case Properties of
            #{server_keep_alive := Own} when Own > 0 -> Own;
            #{} -> KeepAlive#keepalive.seconds
        end,
    start_timer(Seconds * 500, Client#client{
        phase = open,
        keepalive = KeepAlive#keepalive{seconds = Seconds},
        quota = maps:get(receive_maximum, Properties, 65535)
    }).

%% Sends these packets unchanged. From now on the caller gets every packet, and answers it.
-spec hand_over([nats_gateway_mqtt_nif:packet()], client()) -> client().
hand_over(_, Client = #client{phase = closed}) ->
    Client;
hand_over(Packets, Client = #client{phase = open, pings_sent = Pings}) ->
    Sent = length([ping || pingreq <- Packets]),
    write(nats_gateway_mqtt_nif:encode(Packets), Client#client{
        phase = handed_over, pings_sent = Pings + Sent
    }).

%% Ends the time of `hand_over/2'. `Next' is the first packet identifier that was not used.
-spec take_over(nats_gateway_mqtt_nif:packet_id(), client()) -> client().
take_over(_, Client = #client{phase = closed}) -> Client;
take_over(Next, Client) -> Client#client{phase = open, next_packet_id = Next}.

%% -------------------------------------------------------------------------------------------
%% Echoes

%% Needed for a broker that handles all packets it has read before it sends any of the messages that
%% they cause (nats_gateway_echoes). Must be called before anything is subscribed.
-spec pace_echoes(client()) -> client().
pace_echoes(Client) -> Client#client{echoes = nats_gateway_echoes:new()}.

%% The filter has one more subscription, in a shared group or not.
-spec subscribed(Filter :: binary(), client()) -> client().
subscribed(_, Client = #client{echoes = none}) -> Client;
subscribed(Filter, Client = #client{echoes = Echoes}) ->
    Client#client{echoes = nats_gateway_echoes:subscribed(Filter, Echoes)}.

-spec unsubscribed(Filter :: binary(), client()) -> client().
unsubscribed(_, Client = #client{echoes = none}) -> Client;
unsubscribed(Filter, Client = #client{echoes = Echoes}) ->
    Client#client{echoes = nats_gateway_echoes:unsubscribed(Filter, Echoes)}.

%% -------------------------------------------------------------------------------------------
%% Whether more input is taken

%% A broker is behind if it has left so many requests unanswered that others wait, or if it does not
%% read.
-spec ready(client()) -> ok | {wait, client()}.
ready(Client = #client{backlog = Backlog}) ->
    case is_ready(?MAX_BACKLOG, Client) of
        true ->
            ok;
        false ->
            Waiting = Client#client{waiting = ready},
            case nats_gateway_backlog:bytes(Backlog) > ?MAX_BACKLOG of
                true -> {wait, look_in(?LOOK_SOON_MS, Waiting)};
                false -> {wait, Waiting}
            end
    end.

is_ready(MaxBacklog, #client{queue = Queue, backlog = Backlog, phase = Phase}) ->
    Phase =:= closed orelse
        (queue:is_empty(Queue) andalso nats_gateway_backlog:bytes(Backlog) =< MaxBacklog).

%% Then there is room for many requests, not only for one more with each answer.
is_ready_again(Client = #client{requests = Requests}) ->
    map_size(Requests) =< ?MAX_REQUESTS div 2 andalso is_ready(?MAX_BACKLOG div 2, Client).

%% -------------------------------------------------------------------------------------------
%% Barrier

%% `own' waits for what this client has sent. `all' also waits for what the broker has for it by
%% now.
-spec barrier(own | all, client()) -> {ok, client()} | {wait, client()}.
barrier(_, Client = #client{phase = closed}) ->
    {wait, Client};
barrier(own, Client = #client{unflushed = false, requests = Requests}) when
    map_size(Requests) =:= 0
->
    {ok, Client};
barrier(_, Client) ->
    case may_fence(Client) of
        true -> {wait, fence(answers_again(Client), Client)};
        false -> {wait, Client#client{waiting = barrier}}
    end.

%% A broker may pass a message with QoS 2 on when it gets the PUBREL, so the PINGREQ must follow that.
may_fence(#client{queue = Queue, exchanges = Exchanges}) ->
    Exchanges =:= 0 andalso queue:is_empty(Queue).

%% A broker that has answered has at least put the messages into the client's queue. They come
%% before its next answer. EMQX 6 looks at the queue only when there is nothing to read, so the next
%% PINGREQ waits for a moment if there may be messages (nats_gateway_echoes).
answers_again(#client{echoes = none}) -> 0;
answers_again(_) -> 1.

fence(Again, Client) ->
    NClient = #client{pings_sent = Pings} = ping(Client#client{unflushed = false}),
    NClient#client{waiting = {barrier, Pings, Again}}.

ping(Client) -> write(nats_gateway_mqtt_nif:encode([pingreq]), pinged(Client)).

pinged(Client = #client{pings_sent = Pings, echoes = none}) ->
    time_answer(Client#client{pings_sent = Pings + 1});
pinged(Client = #client{pings_sent = Pings, echoes = Echoes}) ->
    time_answer(Client#client{
        pings_sent = Pings + 1,
        pinged_at = erlang:monotonic_time(millisecond),
        echoes = nats_gateway_echoes:pinged(Pings + 1, Echoes)
    }).

%% One at a time, for those who watch the gateway.
time_answer(Client = #client{timed = none, pings_sent = Ping}) ->
    Client#client{timed = {Ping, erlang:monotonic_time()}};
time_answer(Client) ->
    Client.

answer_timed(Client = #client{timed = {Ping, At}, pings_answered = Ping}) ->
    ok = nats_gateway_durations:add(broker_round_trip, erlang:monotonic_time() - At),
    Client#client{timed = none};
answer_timed(Client) ->
    Client.

ping_answered(Client = #client{pings_answered = Answered, suspects = Suspects, echoes = Echoes}) ->
    NClient = answer_timed(Client#client{
        pings_answered = Answered + 1,
        suspects = nats_gateway_suspects:answered(Answered + 1, Suspects)
    }),
    case Echoes =/= none andalso nats_gateway_echoes:answered(Answered + 1, Echoes) of
        false -> NClient;
        {ok, NEchoes} -> NClient#client{echoes = NEchoes};
        {ping_soon, NEchoes} -> ping_soon(NClient#client{echoes = NEchoes})
    end.

%% A broker that answers slowly needs a longer moment to look at anything else.
ping_soon(Client = #client{socket = Socket, pinged_at = PingedAt}) ->
    Took = erlang:monotonic_time(millisecond) - PingedAt,
    Moment = min(?MAX_PING_AGAIN_MS, max(?PING_AGAIN_MS, 2 * Took)),
    _ = erlang:send_after(Moment, self(), {?MODULE, Socket, ping_again}),
    Client.

%% A barrier, messages, or both wait for this PINGREQ.
ping_again(Client = #client{waiting = {barrier, moment, _}, echoes = Echoes}) ->
    {_, NEchoes} = nats_gateway_echoes:ping_again(Echoes),
    fence(0, Client#client{echoes = NEchoes});
ping_again(Client = #client{echoes = Echoes}) ->
    case nats_gateway_echoes:ping_again(Echoes) of
        {ok, _} -> Client;
        {ping, NEchoes} -> ping(Client#client{echoes = NEchoes})
    end.

%% -------------------------------------------------------------------------------------------
%% Sending

%% Keeps the order: a packet behind one that has to wait, waits too. If the codec refuses a packet,
%% this raises `badarg' and has sent nothing. After the end it does nothing.
-spec send([item()], client()) -> client().
send(_, Client = #client{phase = closed}) ->
    Client;
send(Items, Client = #client{suspects = Suspects}) ->
    case nats_gateway_suspects:is_watched(Suspects) of
        true ->
            ok = check(Items),
            watch(Items, Client);
        false ->
            case dispatch(Items, Client) of
                %% A packet that the broker does not get cannot be the reason for its end.
                Broken = #client{broken = true} ->
                    Broken;
                Sent ->
                    Sent#client{suspects = nats_gateway_suspects:sent(Items, Suspects)}
            end
    end.

%% If something waits to be sent, a PINGREQ would overtake it and prove nothing.
watch([], Client) ->
    Client;
watch([Item = {Packet, _} | Items], Client = #client{suspects = Suspects}) ->
    case dispatch([Item], Client) of
        Broken = #client{broken = true} ->
            Broken;
        Sent = #client{queue = Queue} ->
            case
                not queue:is_empty(Queue) orelse
                    nats_gateway_suspects:is_harmless(Packet, Suspects)
            of
                true -> watch(Items, Sent);
                false -> watch(Items, mark(Packet, ping(Sent)))
            end
    end.

mark(Packet, Client = #client{suspects = Suspects, pings_sent = Ping}) ->
    Client#client{suspects = nats_gateway_suspects:marked(Packet, Ping, Suspects)}.

dispatch(Items, Client = #client{queue = Queue}) ->
    case queue:is_empty(Queue) of
        true ->
            {Packets, Rest, NClient} = take(Items, [], Client),
            ok = check(Rest),
            transmit(Packets, NClient#client{queue = queue:from_list(Rest)});
        false ->
            ok = check(Items),
            Client#client{queue = lists:foldl(fun queue:in/2, Queue, Items)}
    end.

%% A packet in the queue must not turn out to be impossible later.
check([]) ->
    ok;
check(Items) ->
    _ = nats_gateway_mqtt_nif:encode([numbered(Packet, 1) || {Packet, _} <- Items]),
    ok.

%% Takes the packets that may be sent now, latest first.
take([{Packet, none} | Items], Packets, Client = #client{echoes = none}) ->
    take(Items, [Packet | Packets], Client);
take([{Packet, Tag} | Rest] = Items, Packets, Client) ->
    case may_send(Packet, Tag, Client) andalso echo(Packet, Client) of
        false ->
            {Packets, Items, Client};
        {wait, Waiting} ->
            {Packets, Items, Waiting};
        {ping, Waiting} ->
            {[pingreq | Packets], Items, pinged(Waiting)};
        {send, Echoing} ->
            {Id, NClient} = number(Packet, Tag, Echoing),
            take(Rest, [numbered(Packet, Id) | Packets], NClient)
    end;
take([], Packets, Client) ->
    {Packets, [], Client}.

%% Does the same with the queue.
take_queued(Packets, Client = #client{queue = Queue}) ->
    case queue:out(Queue) of
        {{value, Item}, Rest} ->
            case take([Item], Packets, Client) of
                {NPackets, [], NClient} -> take_queued(NPackets, NClient#client{queue = Rest});
                {NPackets, _, NClient} -> {NPackets, NClient}
            end;
        {empty, _} ->
            {Packets, Client}
    end.

%% Whether there is room for the copies of a message that come back.
echo(#publish{topic = Topic}, Client = #client{echoes = Echoes}) when Echoes =/= none ->
    {Verdict, NEchoes} = nats_gateway_echoes:publish(Topic, Echoes),
    {Verdict, Client#client{echoes = NEchoes}};
echo(_, Client) ->
    {send, Client}.

%% Only messages count for the Receive Maximum.
may_send(_, none, _) -> true;
may_send(Packet, _, #client{quota = Quota, requests = Requests}) ->
    map_size(Requests) < ?MAX_REQUESTS andalso (Quota > 0 orelse not is_record(Packet, publish)).

number(_, none, Client) ->
    {none, Client};
number(Packet, Tag, Client = #client{requests = Requests, next_packet_id = Next, quota = Quota}) ->
    Id = nats_gateway_mqtt_ids:free(Next, Requests, ?MAX_PACKET_ID),
    NClient = Client#client{next_packet_id = nats_gateway_mqtt_ids:following(Id, ?MAX_PACKET_ID)},
    {Id,
        case Packet of
            #publish{qos = 2} ->
                #client{exchanges = Exchanges} = Client,
                NClient#client{
                    requests = Requests#{Id => #exchange{tag = Tag}},
                    exchanges = Exchanges + 1,
                    quota = Quota - 1
                };
            #publish{} ->
                NClient#client{requests = Requests#{Id => Tag}, quota = Quota - 1};
            _ ->
                NClient#client{requests = Requests#{Id => Tag}}
        end}.

numbered(Packet, none) -> Packet;
numbered(Packet = #publish{qos = 0}, _) -> Packet;
numbered(Packet = #publish{}, Id) -> Packet#publish{packet_id = Id};
numbered(Packet = #subscribe{}, Id) -> Packet#subscribe{packet_id = Id};
numbered(Packet = #unsubscribe{}, Id) -> Packet#unsubscribe{packet_id = Id}.

transmit([], Client) ->
    Client;
transmit(Packets, Client) ->
    write(nats_gateway_mqtt_nif:encode(lists:reverse(Packets)), Client#client{unflushed = true}).

%% A socket that takes nothing any more has ended. But what the broker has said before may still be
%% in the mailbox: an answer, a message, the reason of the end. So the end is handled after that.
write(_, Client = #client{broken = true}) ->
    Client;
write(Bytes, Client = #client{socket = Socket, backlog = Backlog, keepalive = KeepAlive}) ->
    Sent =
        case nats_gateway_transport:send(Socket, Bytes) of
            ok -> nats_gateway_backlog:sent(iolist_size(Bytes), Socket, Backlog);
            Error -> Error
        end,
    case Sent of
        {ok, NBacklog} ->
            look_later(carried(Client#client{keepalive = has_sent(KeepAlive), backlog = NBacklog}));
        {error, _} ->
            self() ! {?MODULE, Socket, broken},
            Client#client{broken = true}
    end.

carried(Client = #client{acknowledgement = due}) -> Client#client{acknowledgement = carried};
carried(Client) -> Client.

has_sent(KeepAlive = #keepalive{sent = true}) -> KeepAlive;
has_sent(KeepAlive) -> KeepAlive#keepalive{sent = true}.

has_heard(Client = #client{keepalive = #keepalive{heard = true}}) -> Client;
has_heard(Client = #client{keepalive = KeepAlive}) ->
    Client#client{keepalive = KeepAlive#keepalive{heard = true}}.

%% A socket does not say when the bytes that wait in it have been sent.
look_later(Client = #client{looking = false, backlog = Backlog}) ->
    case nats_gateway_backlog:bytes(Backlog) of
        0 -> Client;
        Bytes when Bytes > ?MAX_BACKLOG div 2 -> look_in(?LOOK_SOON_MS, Client);
        _ -> look_in(?LOOK_MS, Client)
    end;
look_later(Client) ->
    Client.

look_in(Milliseconds, Client) ->
    Look = make_ref(),
    _ = erlang:send_after(Milliseconds, self(), {?MODULE, Look, look}),
    Client#client{looking = Look}.

look_at_socket(Client = #client{socket = Socket, backlog = Backlog}) ->
    case nats_gateway_backlog:look(Socket, Backlog) of
        {ok, NBacklog} ->
            complete(look_later(Client#client{looking = false, backlog = NBacklog}));
        {error, timeout} ->
            ended(does_not_read, [], Client);
        {error, _} ->
            ended(closed, [], Client)
    end.

%% -------------------------------------------------------------------------------------------
%% What the broker sends

%% Takes every message that the process gets. `ignore' means that it is not for this client, or that
%% its connection has ended.
-spec handle_info(term(), client()) -> {[event()], client()} | ignore.
handle_info({?MODULE, Timer, timeout}, Client = #client{keepalive = #keepalive{timer = Timer}}) ->
    case Client#client.phase of
        login -> ended(no_answer, [], Client);
        _ -> tick(Client)
    end;
handle_info({?MODULE, Socket, broken}, Client = #client{socket = Socket}) when
    Socket =/= undefined
->
    ended(closed, [], Client);
handle_info({?MODULE, Socket, ping_again}, Client = #client{socket = Socket}) when
    Socket =/= undefined
->
    {[], ping_again(Client)};
handle_info({?MODULE, Socket, acknowledge}, Client = #client{socket = Socket}) when
    Socket =/= undefined
->
    _ = Client#client.acknowledgement =:= due andalso nats_gateway_transport:acknowledge(Socket),
    {[], Client#client{acknowledgement = none}};
handle_info({?MODULE, Look, look}, Client = #client{looking = Look}) ->
    look_at_socket(Client);
handle_info({?MODULE, _, _}, _) ->
    ignore;
handle_info(_, #client{socket = undefined}) ->
    ignore;
handle_info(Message, Client = #client{socket = Socket}) ->
    case nats_gateway_transport:classify(Message, Socket) of
        {data, Bytes} ->
            input(Bytes, acknowledge_soon(Bytes, replenish(has_heard(Client))));
        passive ->
            case nats_gateway_transport:activate(Socket) of
                ok -> {[], Client#client{chunks = nats_gateway_transport:max_active_n()}};
                {error, _} -> ended(socket_failed, [], Client)
            end;
        closed ->
            ended(closed, [], Client);
        {error, _} ->
            ended(closed, [], Client);
        other ->
            ignore
    end.

%% The acknowledgement takes three system calls and a packet. So the client gets what has come first: this
%% process acknowledges when it has handled all messages that are in its mailbox by now. The kernel
%% acknowledges larger chunks without delay, and so does any packet that is sent to the broker.
acknowledge_soon(Bytes, Client) when byte_size(Bytes) >= ?SEGMENT ->
    Client;
acknowledge_soon(_, Client = #client{acknowledgement = none, socket = Socket}) ->
    self() ! {?MODULE, Socket, acknowledge},
    Client#client{acknowledgement = due};
acknowledge_soon(_, Client) ->
    Client#client{acknowledgement = due}.

%% A chunk has come. The socket stays active.
replenish(Client = #client{chunks = Left}) when Left > ?LOW ->
    Client#client{chunks = Left - 1};
replenish(Client = #client{socket = Socket, chunks = Left}) ->
    case nats_gateway_transport:replenish(?LOW, Socket) of
        ok -> Client#client{chunks = Left - 1 + ?LOW};
        %% The end of a socket comes as a message.
        _ -> Client#client{chunks = max(1, Left - 1)}
    end.

input(Bytes, Client = #client{input = Input}) ->
    case nats_gateway_mqtt_input:feed(Bytes, Input) of
        {bytes, Ready, NInput} -> decode(Ready, [], [], Client#client{input = NInput});
        {more, NInput} -> {[], Client#client{input = NInput}}
    end.

%% Events and acknowledgements are collected latest first.
decode(Bytes, Events, Acks, Client = #client{input = Input}) ->
    case nats_gateway_mqtt_nif:decode(Bytes, nats_gateway_mqtt_input:max_size(Input)) of
        {ok, Packets, Rest, Need} ->
            case packets(Packets, Events, Acks, arrived(Packets, Client)) of
                {NEvents, NAcks, NClient = #client{phase = Phase}} when
                    Need > 0; Phase =:= closed
                ->
                    settle(NEvents, NAcks, keep(Rest, Need, NClient));
                {NEvents, NAcks, NClient} ->
                    decode(Rest, NEvents, NAcks, NClient)
            end;
        {error, Reason, Packets} ->
            case packets(Packets, Events, Acks, Client) of
                {NEvents, NAcks, NClient = #client{phase = closed}} ->
                    settle(NEvents, NAcks, NClient);
                {NEvents, NAcks, NClient = #client{phase = open}} when
                    Reason =:= packet_too_large
                ->
                    Large = nats_gateway_mqtt_input:behind(length(Packets), Bytes),
                    too_large(Large, NEvents, NAcks, NClient);
                {NEvents, NAcks, NClient} ->
                    settle(fault(Reason, NEvents, NClient), NAcks)
            end
    end.

arrived(_, Client = #client{echoes = none}) ->
    Client;
arrived(Packets, Client = #client{echoes = Echoes}) ->
    Count = length([publish || #publish{} <- Packets]),
    Client#client{echoes = nats_gateway_echoes:arrived(Count, Echoes)}.

%% The caller does not get this message, but the broker gets its answer.
too_large(Bytes, Events, Acks, Client = #client{input = Input}) ->
    case nats_gateway_mqtt_input:large(Bytes) of
        {publish, Topic, Size, Id} ->
            Max = nats_gateway_mqtt_input:max_size(Input),
            NEvents = [{too_large, Topic, Size, Max} | Events],
            NAcks = [acknowledgement(Id) || Id =/= none] ++ Acks,
            case nats_gateway_mqtt_input:skip(Size, Bytes, Input) of
                {bytes, Rest, NInput} ->
                    decode(Rest, NEvents, NAcks, Client#client{input = NInput});
                {more, NInput} ->
                    settle(NEvents, NAcks, Client#client{input = NInput})
            end;
        more ->
            settle(Events, Acks, keep(Bytes, byte_size(Bytes) + 1, Client));
        other ->
            settle(fault(packet_too_large, Events, Client), Acks)
    end.

keep(Rest, Need, Client = #client{input = Input}) ->
    Client#client{input = nats_gateway_mqtt_input:keep(Rest, Need, Input)}.

acknowledgement(Id) -> #puback{packet_id = Id}.

packets([], Events, Acks, Client) ->
    {Events, Acks, Client};
packets([Packet | Packets], Events, Acks, Client = #client{phase = open}) ->
    case Packet of
        #publish{qos = 0} ->
            packets(Packets, [Packet | Events], Acks, Client);
        #publish{qos = 1, packet_id = Id} ->
            packets(Packets, [Packet | Events], [acknowledgement(Id) | Acks], Client);
        #puback{packet_id = Id, reason = Reason} ->
            {NEvents, NClient} = answer(Id, Reason, 1, Events, Client),
            packets(Packets, NEvents, Acks, NClient);
        #pubrec{packet_id = Id, reason = Reason} ->
            packets(Packets, Events, Acks, Client, received(Id, Reason, Client));
        #pubcomp{packet_id = Id} ->
            packets(Packets, Events, Acks, Client, exchanged(Id, Client));
        #suback{packet_id = Id, reasons = [Reason]} ->
            {NEvents, NClient} = answer(Id, Reason, 0, Events, Client),
            packets(Packets, NEvents, Acks, NClient);
        #unsuback{packet_id = Id, reasons = [Reason]} ->
            {NEvents, NClient} = answer(Id, Reason, 0, Events, Client),
            packets(Packets, NEvents, Acks, NClient);
        pingresp ->
            packets(Packets, Events, Acks, ping_answered(Client));
        #disconnect{reason = Reason, properties = Properties} ->
            {NEvents, NClient} = ended({disconnect, Reason, Properties}, Events, Client),
            {NEvents, Acks, NClient};
        #unreadable{packet_id = undefined} ->
            packets(Packets, Events, Acks, Client);
        #unreadable{packet_id = Id} ->
            packets(Packets, Events, [acknowledgement(Id) | Acks], Client);
        %% No subscription asked for QoS 2, and a second CONNACK is not allowed.
        _ ->
            {NEvents, NClient} = fault(protocol_error, Events, Client),
            {NEvents, Acks, NClient}
    end;
packets([Packet | Packets], Events, Acks, Client = #client{phase = handed_over}) ->
    case Packet of
        #disconnect{reason = Reason, properties = Properties} ->
            {NEvents, NClient} = ended({disconnect, Reason, Properties}, Events, Client),
            {NEvents, Acks, NClient};
        pingresp ->
            packets(Packets, [{packet, Packet} | Events], Acks, ping_answered(Client));
        _ ->
            packets(Packets, [{packet, Packet} | Events], Acks, Client)
    end;
packets([Packet | Packets], Events, Acks, Client = #client{phase = login}) ->
    case Packet of
        #connack{reason = 0, properties = Properties} ->
            packets(
                Packets, [{connected, Properties} | Events], Acks, connected(Properties, Client)
            );
        #connack{reason = Reason, properties = Properties} ->
            {[{refused, Reason, Properties} | Events], Acks, aborted(Client)};
        _ ->
            {NEvents, NClient} = fault(protocol_error, Events, Client),
            {NEvents, Acks, NClient}
    end;
packets(_, Events, Acks, Client = #client{phase = closed}) ->
    {Events, Acks, Client}.

%% Goes on after an answer that belongs to QoS 2.
packets(Packets, Events, Acks, _, {release, Id, Client}) ->
    packets(Packets, Events, [#pubrel{packet_id = Id} | Acks], Client);
packets(Packets, Events, Acks, _, {done, Tag, Reason, Client}) ->
    packets(Packets, [{answer, Tag, Reason} | Events], Acks, Client);
packets(_, Events, Acks, Client, fault) ->
    {NEvents, NClient} = fault(protocol_error, Events, Client),
    {NEvents, Acks, NClient}.

%% A reason that is an error ends the exchange.
received(Id, Reason, Client = #client{requests = Requests}) ->
    case Requests of
        #{Id := #exchange{tag = Tag}} when Reason >= ?UNSPECIFIED_ERROR ->
            {done, Tag, Reason, exchange_ended(Id, Client)};
        #{Id := Exchange = #exchange{}} ->
            NRequests = Requests#{Id := Exchange#exchange{received = Reason}},
            {release, Id, Client#client{requests = NRequests}};
        #{} ->
            fault
    end.

exchanged(Id, Client = #client{requests = Requests}) ->
    case Requests of
        #{Id := #exchange{tag = Tag, received = Reason}} when Reason =/= none ->
            {done, Tag, Reason, exchange_ended(Id, Client)};
        #{} ->
            fault
    end.

exchange_ended(Id, Client = #client{requests = Requests, exchanges = Exchanges, quota = Quota}) ->
    Client#client{
        requests = maps:remove(Id, Requests), exchanges = Exchanges - 1, quota = Quota + 1
    }.

%% `Freed' is added to what the broker's Receive Maximum allows.
answer(Id, Reason, Freed, Events, Client = #client{requests = Requests, quota = Quota}) ->
    case maps:take(Id, Requests) of
        %% QoS 2 has other answers.
        {#exchange{}, _} ->
            fault(protocol_error, Events, Client);
        {Tag, Left} ->
            {[{answer, Tag, Reason} | Events],
                Client#client{requests = Left, quota = Quota + Freed}};
        error ->
            {Events, Client}
    end.

%% -------------------------------------------------------------------------------------------
%% After each chunk

settle({Events, Client}, Acks) -> settle(Events, Acks, Client).

%% The acknowledgements are sent first, because they make room in the broker for what it holds back.
%% Then follow the packets for which the broker's answers have made room here.
settle(Events, _, Client = #client{phase = closed}) ->
    {lists:reverse(Events), Client};
settle(Events, Acks, Client) ->
    {Completed, Done} = complete(flush(Acks, Client)),
    {lists:reverse(Events, Completed), Done}.

flush(Acks, Client = #client{queue = Queue}) ->
    case queue:is_empty(Queue) of
        true when Acks =:= [] ->
            Client;
        true ->
            write(nats_gateway_mqtt_nif:encode(lists:reverse(Acks)), Client);
        false ->
            {Packets, NClient} = take_queued(Acks, Client),
            transmit(Packets, NClient)
    end.

%% Completes what was waited for, if it has happened.
complete(Client = #client{waiting = none}) ->
    {[], Client};
complete(Client = #client{waiting = ready}) ->
    case is_ready_again(Client) of
        true -> {[ready], Client#client{waiting = none}};
        false -> {[], Client}
    end;
complete(Client = #client{waiting = barrier}) ->
    case may_fence(Client) of
        true -> complete(fence(answers_again(Client), Client));
        false -> {[], Client}
    end;
complete(Client = #client{waiting = {barrier, Pings, 0}, requests = Requests}) when
    map_size(Requests) =:= 0, Client#client.pings_answered >= Pings
->
    #client{suspects = Suspects} = Client,
    {[barrier], settled_echoes(Client#client{
        waiting = none, suspects = nats_gateway_suspects:settled(Suspects)
    })};
complete(Client = #client{waiting = {barrier, Pings, 1}, requests = Requests}) when
    map_size(Requests) =:= 0, Client#client.pings_answered >= Pings
->
    case nats_gateway_echoes:is_under_way(Client#client.echoes) of
        true -> {[], ping_soon(Client#client{waiting = {barrier, moment, 0}})};
        false -> complete(fence(0, Client))
    end;
complete(Client) ->
    {[], Client}.

settled_echoes(Client = #client{echoes = none}) -> Client;
settled_echoes(Client = #client{echoes = Echoes}) ->
    Client#client{echoes = nats_gateway_echoes:settled(Echoes)}.

%% -------------------------------------------------------------------------------------------
%% Keepalive

start_timer(Milliseconds, Client = #client{keepalive = KeepAlive}) ->
    Timer = make_ref(),
    _ = erlang:send_after(Milliseconds, self(), {?MODULE, Timer, timeout}),
    Client#client{keepalive = KeepAlive#keepalive{timer = Timer}}.

%% The tick comes twice in the keepalive interval. Each time the broker must hear something, and
%% must be heard. If the broker was silent, a PINGREQ is sent. If it stays silent until the next
%% tick, that is the end.
tick(Client = #client{phase = handed_over, keepalive = #keepalive{seconds = Seconds}}) ->
    {[], start_timer(Seconds * 500, Client)};
tick(Client = #client{keepalive = #keepalive{heard = false, probed = true}}) ->
    ended(silent, [], Client);
tick(Client = #client{keepalive = #keepalive{heard = Heard, sent = Sent, seconds = Seconds}}) ->
    Pinged =
        case Heard andalso Sent of
            true -> Client;
            false -> ping(Client)
        end,
    {[], start_timer(Seconds * 500, Pinged#client{
        keepalive = #keepalive{seconds = Seconds, probed = not Heard}
    })}.

%% -------------------------------------------------------------------------------------------
%% The end

%% The caller ends the connection: with a DISCONNECT, and so that all that was sent before it
%% arrives.
-spec stop(client()) -> ok.
stop(Client) -> stop(?NORMAL_DISCONNECTION, Client).

%% The same with a reason code.
-spec stop(Reason :: byte(), client()) -> ok.
stop(_, #client{phase = closed}) -> ok;
stop(Reason, #client{socket = Socket}) -> retire(Socket, Reason).

ended(Ending, Events, Client = #client{suspects = Suspects}) ->
    {[{closed, Ending, blame(Ending, Suspects)} | Events], aborted(Client)}.

blame({disconnect, Reason, _}, Suspects) ->
    case nats_gateway_mqtt_reason:is_blame(Reason) of
        true -> nats_gateway_suspects:blame(blamed, Suspects);
        false -> none
    end;
blame(Ending, Suspects) when Ending =:= closed; Ending =:= does_not_read ->
    nats_gateway_suspects:blame(closed, Suspects);
blame(_, _) ->
    none.

%% The broker breaks the protocol. The DISCONNECT says so.
fault(Reason, Events, Client = #client{socket = Socket}) ->
    ok = retire(Socket, reason_code(Reason)),
    {[{closed, {fault, Reason}, none} | Events], closed(Client)}.

reason_code(malformed_packet) -> ?MALFORMED_PACKET;
reason_code(packet_too_large) -> ?PACKET_TOO_LARGE;
reason_code(_) -> ?PROTOCOL_ERROR.

aborted(Client = #client{socket = Socket}) -> abort(Socket, closed(Client)).

closed(Client = #client{keepalive = KeepAlive, input = Input}) ->
    Client#client{
        phase = closed,
        socket = undefined,
        keepalive = KeepAlive#keepalive{timer = undefined},
        input = nats_gateway_mqtt_input:new(nats_gateway_mqtt_input:max_size(Input)),
        requests = #{},
        exchanges = 0,
        queue = queue:new(),
        looking = false,
        waiting = none
    }.

abort(Socket, Result) ->
    ok = nats_gateway_transport:abort(Socket),
    Result.

%% The last messages of a client must arrive. If a socket is closed with unread bytes in it, bytes
%% that the broker has not read yet are lost. So a process of its own waits some time for the broker
%% to close.
retire(Socket, Reason) ->
    _ = nats_gateway_transport:deactivate(Socket),
    Disconnect = nats_gateway_mqtt_nif:encode([#disconnect{reason = Reason}]),
    Pid = spawn(fun() -> farewell(Socket, Disconnect) end),
    case nats_gateway_transport:controlling_process(Socket, Pid) of
        ok ->
            Pid ! go,
            ok;
        {error, _} ->
            exit(Pid, kill),
            abort(Socket, ok)
    end.

farewell(Socket, Disconnect) ->
    receive
        go -> ok
    after ?LINGER -> exit(normal)
    end,
    case nats_gateway_transport:send(Socket, Disconnect) of
        ok -> nats_gateway_transport:linger_close(Socket, ?LINGER);
        {error, _} -> abort(Socket, ok)
    end.
