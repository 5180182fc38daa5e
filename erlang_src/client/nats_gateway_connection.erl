%% The process of one client. It owns the socket and the timers, and sends at most once per turn.
%% The rules of the protocol are in the channel (nats_gateway_channel). Each part of the state is a
%% value with a module of its own: establishing, input, inbox, outbox, heartbeat, heap, report
%% times. The process runs under `nats_gateway_guard', because the data that it handles may be
%% credentials.
-module(nats_gateway_connection).

-behaviour(gen_server).

-export([publish/2]).
-export([start_link/2]).
-export([start_link/3]).
-export([start_link/4]).
-export([hand_over/2]).
-export([drain/1]).
-export([drain/2]).
-export([configure/1]).
-export([tell_lame_duck/2]).
-export([answer/3]).
-export([answer/4]).
-export([feed/3]).
-export([describe/3]).
-export([kick/2]).
-export([info/1]).
-export([call/2]).
-export([call/3]).
-export([cast/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-include("nats_gateway.hrl").

-export_type([options/0]).

-type options() :: #{
    host := module(),
    config := nats_gateway_config:config(),
    listener := atom() | binary(),
    %% `tcp' without this key
    transport => tcp | ssl | ws | wss,
    refuse => nats_gateway_channel:stop_reason(),
    tls => nats_gateway_tls:plan(),
    websocket => nats_gateway_websocket:settings(),
    %% milliseconds within which the PROXY header must have come; without the key there is none
    proxy_protocol => pos_integer(),
    peer_cert_as_username => nats_gateway_certificate:name(),
    %% options of the socket
    active_n => pos_integer(),
    keepalive => {Idle :: pos_integer(), Interval :: pos_integer(), Count :: pos_integer()},
    %% the key of the persistent term with the options, which all connections of a listener share
    key => term()
}.

-record(state, {
    %% `establishing' until the client's operations are read
    phase = establishing :: establishing | open,
    %% undefined while the process of a handshake owns the socket
    socket :: undefined | nats_gateway_transport:socket(),
    options :: options(),
    channel :: undefined | nats_gateway_channel:channel(),
    establishing = nats_gateway_establishing:new() :: nats_gateway_establishing:establishing(),
    %% if there is a WebSocket, the bytes of the socket are its frames
    websocket = none :: none | nats_gateway_websocket:websocket(),
    input = nats_gateway_input:new() :: nats_gateway_input:input(),
    inbox = nats_gateway_inbox:new(false) :: nats_gateway_inbox:inbox(),
    outbox = nats_gateway_outbox:new() :: nats_gateway_outbox:outbox(),
    heap = nats_gateway_heap:new() :: nats_gateway_heap:heap(),
    heartbeat = nats_gateway_heartbeat:new() :: nats_gateway_heartbeat:heartbeat(),
    report_times = nats_gateway_report_times:new(false) :: nats_gateway_report_times:times(),
    %% what the channel said last about what it can do next; the timer `login' is for its end of the
    %% login
    next = {ready, infinity} :: nats_gateway_channel:next(),
    timers = #{} :: #{timer() => reference()}
}).

-type timer() ::
    heartbeat
    | heartbeat_wait
    | authentication
    | idle
    | login
    | report
    | drained
    | writing
    | collect
    | busy
    | behind
    | mute
    | left
    | streams.

-define(MAX_TIMER_MS, 16#FFFFFFFF).

-define(BUSY_CHUNK, 32768).
%% The number of such chunks that the socket may send in a row. The binaries of more would make the
%% heap be collected.
-define(FEW_CHUNKS, 4).

%% If the socket may send so many chunks or fewer, it may be let send more.
-define(LOW, 16).
%% A large heap is given back after this time.
-define(BUSY_MS, 5000).

%% zlib's memory for compressing, 320 KB, is given back after this time.
-define(STREAMS_MS, 5000).

%% Messages are collected for this time.
-define(COLLECT_MS, 1).

%% The number of bytes that TLS gets at once. TLS encrypts all of them before the socket gets any.
%% With pieces of 1 MB, the memory freed meanwhile left holes as large as the bytes that waited.
-define(MAX_PIECE, 131072).
%% A client that is behind is written to for this time. Then the mailbox gets a turn, because it may
%% hold a kick or the client's end. Standalone, the broker's messages wait in the broker's socket
%% meanwhile.
-define(BEHIND_MS, 200).
%% While this many bytes or more wait, a WebSocket's pings are not answered. The latest one is
%% answered later.
-define(PONGS_BELOW, 65536).
%% A client that is gone has sent everything that it will ever send. If no input of it came up for
%% this time, the end of its input will not come up either. While its input waits for the host, the
%% heartbeat decides instead.
-define(MUTE_MS, 5000).
%% A socket whose input waits for the host does not tell when the client has gone, so it is asked at
%% this interval.
-define(LEFT_MS, 200).

%% Stores the options for the connections that start with this key. They take no memory for each
%% connection then, and no report shows them. Options that are the same are not stored again: a
%% change makes the runtime scan all processes.
-spec publish(Key :: term(), options()) -> changed | unchanged.
publish(Key, Options) ->
    Keyed = (with_digest(Options))#{key => Key},
    case persistent_term:get(Key, undefined) of
        Keyed ->
            unchanged;
        _ ->
            ok = persistent_term:put(Key, Keyed),
            changed
    end.

%% The watchers of the key/value store are kept for logins under the same settings. It takes up to a
%% millisecond for 1000 users, so it is not done for each login.
with_digest(Options = #{config := Config = #{kv := Buckets}}) when is_map(Buckets) ->
    Options#{config := Config#{digest => erlang:phash2(Config, 1 bsl 32)}};
with_digest(Options) ->
    Options.

-spec start_link(nats_gateway_transport:socket(), Key :: term()) -> {ok, pid()}.
start_link(Socket, Key) ->
    nats_gateway_guard:start_link(?MODULE, {Socket, Key}).

%% EMQX's acceptors, esockd and ranch, start a connection with these arguments.
-spec start_link
    (esockd_transport, gen_tcp:socket(), Key :: term()) -> {ok, pid()} | {error, term()};
    (RanchRef :: atom(), Transport :: module(), Key :: term()) -> {ok, pid()} | {error, term()}.
start_link(esockd_transport, Port, Key) ->
    nats_gateway_guard:start_link(?MODULE, {{esockd, Port}, Key});
start_link(Ref, _, Key) ->
    nats_gateway_guard:start_link(?MODULE, {{ranch, Ref}, Key}).

%% ranch 1 passes the socket as well.
-spec start_link(atom(), gen_tcp:socket(), module(), Key :: term()) ->
    {ok, pid()} | {error, term()}.
start_link(Ref, _, Transport, Key) -> start_link(Ref, Transport, Key).

%% The acceptor calls this after the start, because only the owner of a socket can give it away.
-spec hand_over(nats_gateway_transport:socket(), pid()) -> ok.
hand_over(Socket, Pid) ->
    case nats_gateway_transport:controlling_process(Socket, Pid) of
        ok -> gen_server:cast(Pid, socket_ready);
        {error, Reason} -> gen_server:cast(Pid, {socket_lost, Reason})
    end.

%% Tells the client to connect elsewhere (lame duck mode), and ends the connection.
-spec drain(pid()) -> ok.
drain(Pid) -> drain(Pid, 0).

%% The same, but the client has this time to leave by itself.
-spec drain(pid(), Milliseconds :: non_neg_integer()) -> ok.
drain(Pid, Milliseconds) -> gen_server:cast(Pid, {drain, Milliseconds}).

%% Ends connections for somebody who manages the clients, within the time. In EMQX its own kick comes
%% through `call/3' and ends in the same way. Returns how many have ended.
-spec kick([pid()], TimeoutMs :: non_neg_integer()) -> non_neg_integer().
kick(Pids, Timeout) ->
    Until = now_ms() + Timeout,
    Requests = [gen_server:send_request(Pid, kick) || Pid <- Pids],
    length([kicked || Request <- Requests, response(Request, Until) =:= {reply, ok}]).

%% Describes many connections as they are at this moment, in the order of the list. A connection is
%% `gone' if it has ended, or has not answered when the time for all of them is over.
-spec describe([pid()], figures | subscriptions, TimeoutMs :: non_neg_integer()) ->
    [
        {ok, nats_gateway_census:figures(), nats_gateway_channel:description(),
            [nats_gateway_subscriptions:subscription()]}
        | gone
    ].
describe(Pids, What, Timeout) ->
    Until = now_ms() + Timeout,
    Requests = [gen_server:send_request(Pid, {describe, What}) || Pid <- Pids],
    [described(Request, Until) || Request <- Requests].

described(Request, Until) ->
    case response(Request, Until) of
        {reply, Reply} -> Reply;
        _ -> gone
    end.

response(Request, Until) -> gen_server:receive_response(Request, max(0, Until - now_ms())).

%% The options under the key have changed.
-spec configure(pid()) -> ok.
configure(Pid) -> gen_server:cast(Pid, configure).

%% Tell the client to go elsewhere, and serve it on. `false': it does not take an INFO now.
-spec tell_lame_duck(pid(), TimeoutMs :: non_neg_integer()) -> boolean().
tell_lame_duck(Pid, Timeout) -> gen_server:call(Pid, tell_lame_duck, Timeout).

%% To what this client has asked with `nats_gateway_host:server_request()'.
-spec answer(pid(), ReplyTopic :: binary(), Payload :: binary()) -> ok.
answer(Pid, ReplyTopic, Payload) -> answer(Pid, ReplyTopic, undefined, Payload).

-spec answer(pid(), ReplyTopic :: binary(), nats_gateway_nif:headers(), Payload :: binary()) -> ok.
answer(Pid, ReplyTopic, Headers, Payload) ->
    gen_server:cast(Pid, {answer, ReplyTopic, Headers, Payload}).

%% Messages for what the client has subscribed to. The caller gets `{fed, yes}', `{fed, behind}' if
%% the client is slow to take its output, or `{fed, no}' if there is no such subscription.
-spec feed(pid(), Topic :: binary(), [nats_gateway_requests:feed()]) -> ok.
feed(Pid, Topic, Feeds) -> gen_server:cast(Pid, {feed, Topic, Feeds, self()}).

-spec info(pid()) -> map().
info(Pid) -> gen_server:call(Pid, info).

%% The next three pass a request or a message to the host of this client.
-spec call(pid(), Request :: term()) -> term().
call(Pid, Request) -> call(Pid, Request, infinity).

-spec call(pid(), Request :: term(), timeout()) -> term().
call(Pid, Request, Timeout) -> gen_server:call(Pid, Request, Timeout).

-spec cast(pid(), Message :: term()) -> ok.
cast(Pid, Message) -> gen_server:cast(Pid, {message, Message}).

%% -------------------------------------------------------------------------------------------

init({Acceptor = {Kind, _}, Key}) when Kind =:= esockd; Kind =:= ranch ->
    {ok, new_state(Key), {continue, Acceptor}};
init({Socket, Key}) ->
    State = new_state(Key),
    {ok, State#state{socket = Socket}}.

new_state(Key) ->
    %% The supervisor's shutdown must reach terminate/2, which says goodbye to the host.
    _ = process_flag(trap_exit, true),
    #state{options = persistent_term:get(Key)}.

handle_continue({esockd, Port}, State) ->
    {ok, Socket} = nats_gateway_transport:from_esockd(Port),
    greet(State#state{socket = Socket});
handle_continue({ranch, Ref}, State) ->
    {ok, Socket} = nats_gateway_transport:from_ranch(Ref),
    greet(State#state{socket = Socket}).

handle_call(info, _, State = #state{channel = Channel}) ->
    {reply, nats_gateway_channel:info(Channel), State};
handle_call({describe, _}, _, State = #state{channel = undefined}) ->
    {reply, gone, State};
handle_call({describe, What}, _, State = #state{socket = Socket, channel = Channel}) ->
    Subscriptions =
        case What of
            figures -> [];
            subscriptions -> nats_gateway_channel:subscriptions(Channel)
        end,
    Figures = nats_gateway_report:figures(nats_gateway_report:octets(Socket), Socket, Channel),
    {reply, {ok, Figures, nats_gateway_report:description(Socket, Channel), Subscriptions}, State};
handle_call(tell_lame_duck, _, State = #state{channel = undefined}) ->
    {reply, false, State};
handle_call(tell_lame_duck, _, Idle) ->
    State = #state{channel = Channel} = report_later(Idle),
    case nats_gateway_channel:lame_duck(Channel) of
        [] ->
            {reply, false, State};
        Info ->
            case result({ok, Info, State#state.next, Channel}, State) of
                {noreply, NState} -> {reply, true, NState};
                {stop, Reason, NState} -> {stop, Reason, true, NState}
            end
    end;
handle_call(kick, _, State = #state{phase = establishing}) ->
    {stop, {shutdown, kicked}, ok, State};
handle_call(_, _, State = #state{channel = undefined}) ->
    {reply, ignored, State};
handle_call(Request, From, Idle) ->
    State = #state{channel = Channel} = report_later(Idle),
    {Reply, Result} = nats_gateway_channel:handle_call(Request, Channel),
    case result(Result, State) of
        {noreply, NState} ->
            {reply, Reply, NState};
        {stop, Reason, NState} ->
            %% The caller need not wait until the client has closed its side.
            Left = leave(Reason, NState),
            ok = gen_server:reply(From, Reply),
            {stop, Reason, Left}
    end.

handle_cast(socket_ready, State) ->
    greet(State);
handle_cast({socket_lost, _}, State) ->
    stop_lost(State);
handle_cast({drain, _}, State = #state{phase = establishing}) ->
    {stop, {shutdown, drained}, State};
handle_cast({drain, Ms}, Idle) ->
    State = report_later(Idle),
    _ = send_lame_duck(State),
    case Ms of
        0 -> close(drained, State);
        _ -> {noreply, start_timer(drained, Ms, State)}
    end;
handle_cast(configure, Idle = #state{options = #{key := Key}}) ->
    State = #state{channel = Channel} = report_later(Idle),
    Options = #{config := Config} = persistent_term:get(Key, State#state.options),
    NState = State#state{options = Options, report_times = report_times(Options)},
    case Channel of
        undefined ->
            {noreply, NState};
        _ ->
            Octets = nats_gateway_report:octets(State#state.socket),
            _ = report_to_census(Octets, NState),
            result(nats_gateway_channel:configure(Config, Channel), NState)
    end;
handle_cast({message, Message}, State) ->
    handle_info(Message, State);
handle_cast({answer, ReplyTopic, Headers, Payload}, State = #state{channel = Channel}) when
    Channel =/= undefined
->
    Answered = nats_gateway_channel:answer(ReplyTopic, Headers, Payload, Channel),
    handled(Answered, report_later(State));
handle_cast({feed, Topic, Feeds, From}, State = #state{channel = Channel}) when
    Channel =/= undefined
->
    {IsTaken, Result} = nats_gateway_channel:feed(Topic, Feeds, Channel),
    From ! {fed, IsTaken},
    handled(Result, report_later(State));
handle_cast({client_event, Subject, Payload}, State = #state{channel = Channel}) when
    Channel =/= undefined
->
    handled(nats_gateway_channel:client_event(Subject, Payload, Channel), report_later(State));
handle_cast(_, State) ->
    {noreply, State}.

report_times(#{host := Host, config := #{enable_stats := EnableStats}}) ->
    Times = nats_gateway_report_times:new(EnableStats andalso nats_gateway_channel:reports(Host)),
    case nats_gateway_census:is_on() of
        true -> nats_gateway_report_times:watched(Times);
        false -> Times
    end.

greet(State = #state{socket = Socket, options = Options = #{host := Host}}) ->
    %% The socket refuses options only if it is closed, and then its peer name cannot be read
    %% either.
    _ =
        case Options of
            #{keepalive := KeepAlive} -> nats_gateway_transport:keep_alive(Socket, KeepAlive);
            #{} -> ok
        end,
    establish(State#state{
        establishing = nats_gateway_establishing:start(Options, State#state.establishing),
        report_times = report_times(Options),
        inbox = nats_gateway_inbox:new(nats_gateway_channel:collects(Host))
    }).

establish(State = #state{outbox = Outbox, establishing = Establishing}) ->
    case nats_gateway_outbox:is_mute(Outbox) of
        true ->
            {stop, {shutdown, client_closed}, State};
        false ->
            case nats_gateway_establishing:next(Establishing) of
                done -> open(State);
                {Step, Left} -> establish(Step, State#state{establishing = Left})
            end
    end.

establish(peername, State = #state{socket = Socket, establishing = Establishing}) ->
    case nats_gateway_transport:peername(Socket) of
        {ok, Peername} ->
            establish(State#state{
                establishing = nats_gateway_establishing:peername(Peername, Establishing)
            });
        {error, _} ->
            %% The client is already gone, like a port scanner.
            stop_lost(State)
    end;
establish(info, State) ->
    case introduce(State) of
        {noreply, NState} -> establish(NState);
        Stop -> Stop
    end;
establish({websocket, Agreed}, State = #state{establishing = Establishing}) ->
    #{config := #{max_payload_size := MaxPayload}, websocket := Settings} = State#state.options,
    establish(State#state{
        websocket = nats_gateway_websocket:open(Agreed, Settings#{max_payload_size => MaxPayload}),
        establishing = nats_gateway_establishing:agreed(Agreed, Establishing)
    });
establish(_, State = #state{channel = undefined, options = #{refuse := Reason} = Options}) when
    not is_map_key(websocket, Options)
->
    %% The client is not told the reason, because a handshake only for that is not worth its cost.
    log_end({shutdown, Reason}, State),
    {stop, {shutdown, Reason}, State};
establish(Step, State = #state{socket = Socket, options = Options, establishing = Establishing}) ->
    Settings = nats_gateway_establishing:settings(Step, Options),
    case nats_gateway_handshake:start(Step, Socket, Settings) of
        {ok, Worker} ->
            NEstablishing = nats_gateway_establishing:begins(Worker, Establishing),
            {noreply, State#state{socket = undefined, establishing = NEstablishing}};
        {error, Failure} ->
            not_established(Failure, State)
    end.

established({ok, Socket, More}, State = #state{establishing = Establishing}) ->
    establish(State#state{
        socket = Socket, establishing = nats_gateway_establishing:ends(More, Establishing)
    });
established({error, Failure}, State) ->
    not_established(Failure, State).

%% The socket cannot be used any more, whatever error it returned.
stop_lost(State = #state{channel = Channel}) ->
    Channel =/= undefined orelse log_end({shutdown, client_closed}, State),
    {stop, {shutdown, client_closed}, State}.

not_established({Reason, Detail}, State = #state{establishing = Establishing}) ->
    Failed = State#state{establishing = nats_gateway_establishing:failed(Detail, Establishing)},
    State#state.channel =/= undefined orelse log_end({shutdown, Reason}, Failed),
    {stop, {shutdown, Reason}, Failed}.

%% Sends INFO, or refuses the client.
introduce(State = #state{socket = Socket, options = Options, establishing = Establishing}) ->
    case nats_gateway_establishing:client(Socket, Options, Establishing) of
        {ok, Client} -> introduce(maps:get(host, Options), Client, State);
        {error, _} -> stop_lost(State)
    end.

introduce(Host, Client, State = #state{options = #{refuse := Reason}}) ->
    Introduced = {ok, _, _, Channel} = nats_gateway_channel:init(Host, Client),
    ok = enter_census(Channel, State),
    case result(Introduced, State) of
        %% INFO is sent on its own, because WebSocket clients take the whole first frame for INFO.
        {noreply, NState} -> result(nats_gateway_channel:refuse(Reason, Channel), NState);
        Stop -> Stop
    end;
introduce(Host, Client, State) ->
    case nats_gateway_channel:prepare(Host, Client) of
        {ok, Prepared} ->
            Introduced = {ok, _, _, Channel} = nats_gateway_channel:init(Host, Prepared),
            ok = enter_census(Channel, State),
            result(Introduced, State);
        {error, Reason} ->
            %% No INFO is sent, because nats.js would wait for 20 s after one.
            {stop, {shutdown, Reason}, State}
    end.

%% From here on the client's operations are read.
open(State = #state{socket = Socket, channel = Channel, options = Options}) ->
    #{config := Config = #{default_heartbeat_interval := Heartbeat, idle_timeout := Idle}} =
        Options,
    First = chunks(?FEW_CHUNKS, Options),
    case activate(First, State) of
        ok ->
            Opened = State#state{
                phase = open,
                input = nats_gateway_input:resume(First, State#state.input),
                channel = identify(Socket, Options, Channel),
                heartbeat = nats_gateway_heartbeat:start(now_ms(), State#state.heartbeat)
            },
            Started = start_timer(heartbeat, Heartbeat, start_timer(idle, Idle, Opened)),
            case nats_gateway_establishing:must_log_in(Config) of
                true ->
                    #{authentication_timeout := Timeout} = Config,
                    {noreply, start_timer(authentication, Timeout, Started)};
                false ->
                    {noreply, Started}
            end;
        {error, _} ->
            stop_lost(State)
    end.

%% The client's certificate may be its login.
identify(Socket, Options, Channel) ->
    case nats_gateway_transport:peercert(Socket) of
        nossl ->
            Channel;
        Peercert ->
            Which = maps:get(peer_cert_as_username, Options, disabled),
            Name = nats_gateway_certificate:name(Which, Peercert),
            nats_gateway_channel:identify(Peercert, Name, Channel)
    end.

handle_info({timeout, Timer, Name}, State = #state{timers = Timers}) when is_atom(Name) ->
    case Timers of
        #{Name := Timer} ->
            NState = State#state{timers = maps:remove(Name, Timers)},
            case Name of
                %% Nothing is sent.
                _ when Name =:= report; Name =:= busy; Name =:= streams; Name =:= mute ->
                    timeout(Name, NState);
                _ ->
                    timeout(Name, report_later(NState))
            end;
        #{} ->
            {noreply, State}
    end;
handle_info(Message = {Worker, Result}, State = #state{phase = establishing}) when is_pid(Worker) ->
    case nats_gateway_establishing:worker(State#state.establishing) of
        Worker -> established(Result, State);
        _ -> handle_message(Message, State)
    end;
handle_info({'EXIT', Port, _}, State) when is_port(Port) ->
    %% The message of the socket itself tells that it is closed.
    {noreply, State};
handle_info({'EXIT', _, Reason}, State) ->
    {stop, Reason, State};
handle_info(unused_devices, State = #state{channel = Channel}) when Channel =/= undefined ->
    result(nats_gateway_channel:handle_timeout(devices, Channel), report_later(State));
handle_info(Message, State) ->
    handle_message(Message, State).

handle_message(_, State = #state{channel = undefined}) ->
    {noreply, State};
handle_message(Message, State = #state{socket = Socket}) ->
    case nats_gateway_transport:classify(Message, Socket) of
        other -> deliver(Message, report_later(State));
        Event -> input(Event, State)
    end.

input(Event, State = #state{inbox = Inbox}) ->
    case nats_gateway_inbox:is_empty(Inbox) of
        true ->
            handle_input(Event, State);
        false ->
            case hand_over_collected(State) of
                {noreply, NState} -> handle_input(Event, NState);
                Stop -> Stop
            end
    end.

handle_input({data, Data}, State) ->
    #state{heartbeat = Heartbeat, inbox = Inbox, input = Input} = Answered = stop_awaiting_pong(State),
    received(
        Data,
        report_later((enlarge_heap(byte_size(Data) >= ?BUSY_CHUNK, Answered))#state{
            heartbeat = nats_gateway_heartbeat:heard(now_ms(), Heartbeat),
            inbox = nats_gateway_inbox:heard(Inbox),
            input = nats_gateway_input:arrived(Input)
        })
    );
handle_input(passive, State = #state{input = Input}) ->
    reactivate(State#state{input = nats_gateway_input:pause(Input)});
handle_input(closed, State = #state{channel = Channel, input = Input}) ->
    case nats_gateway_channel:is_verifying(Channel) of
        %% The password is not checked any more: the core is for the logins that wait.
        true -> stop_lost(State);
        false -> decode(State#state{input = nats_gateway_input:finish(eof, Input)})
    end;
handle_input({error, tls_alert}, State) ->
    {stop, {shutdown, tls_alert}, State};
handle_input({error, Reason}, State) ->
    {stop, {shutdown, send_error(Reason)}, State}.

%% A message for the host. If the client's operations wait for the host, the message is not
%% collected, because it may be the one that they wait for.
deliver(Message, State = #state{channel = Channel, inbox = Inbox, next = {Next, _}}) ->
    case nats_gateway_inbox:collects(Inbox) of
        true ->
            Now =
                case Next of
                    ready -> erlang:monotonic_time(microsecond);
                    _ -> at_once
                end,
            deliver(nats_gateway_inbox:put(Message, Now, Inbox), Channel, State);
        false ->
            handled(nats_gateway_channel:handle_info(Message, Channel), State)
    end.

deliver({take, Messages, NInbox}, Channel, State) ->
    handled(
        nats_gateway_channel:handle_messages(Messages, Channel),
        cancel_timer(collect, State#state{inbox = NInbox})
    );
deliver({first, NInbox}, _, State) ->
    Waits = start_timer(collect, ?COLLECT_MS, State#state{inbox = NInbox}),
    {noreply, enlarge_heap(true, Waits)};
deliver({wait, NInbox}, _, State) ->
    {noreply, State#state{inbox = NInbox}}.

hand_over_collected(State = #state{channel = Channel, inbox = Inbox}) ->
    {Messages, NInbox} = nats_gateway_inbox:take(erlang:monotonic_time(microsecond), Inbox),
    deliver({take, Messages, NInbox}, Channel, State).

enlarge_heap(true, State = #state{heap = Heap}) ->
    case nats_gateway_heap:is_large(Heap) of
        true -> State;
        false -> start_timer(busy, ?BUSY_MS, State#state{heap = nats_gateway_heap:enlarge(Heap)})
    end;
enlarge_heap(false, State) ->
    State.

handled(Handled, State = #state{next = {Before, _}}) ->
    case result(Handled, State) of
        {noreply, NState = #state{}} when Before =/= ready -> decode(NState);
        Result -> Result
    end.

received(Data, State = #state{websocket = none}) ->
    decode(add_input(Data, State));
received(Data, State = #state{websocket = Websocket}) ->
    {Pongs, NWebsocket} = nats_gateway_websocket:feed(Data, Websocket),
    NState = State#state{websocket = NWebsocket},
    case Pongs of
        [] ->
            decode(NState);
        _ ->
            case send_pong(Pongs, NState) of
                {ok, Sent} -> decode(Sent);
                {error, Reason, Failed} -> {stop, {shutdown, send_error(Reason)}, Failed}
            end
    end.

%% RFC 6455, 5.5.3, lets a server answer only the latest ping.
send_pong(Pongs, State = #state{socket = Socket, outbox = Outbox}) ->
    case nats_gateway_outbox:is_mute(Outbox) orelse nats_gateway_transport:pending(Socket) of
        true ->
            {ok, State};
        {ok, Pending, _} when Pending < ?PONGS_BELOW ->
            Answered = State#state{outbox = nats_gateway_outbox:drop_pong(Outbox)},
            transmit(Pongs, iolist_size(Pongs), 0, Answered);
        {ok, _, Gone} ->
            Kept = nats_gateway_outbox:keep_pong(lists:last(Pongs), Outbox),
            {ok, watch_progress(Gone, State#state{outbox = Kept})};
        {error, _} ->
            {ok, mute(State)}
    end.

add_input(Data, State = #state{input = Input}) ->
    State#state{input = nats_gateway_input:add(Data, Input)}.

%% Decodes the input, unless the decoder needs more bytes or the operations wait for the host.
decode(State = #state{input = Input, next = {ready, _}}) ->
    case nats_gateway_input:is_enough(Input) of
        true -> decode(nats_gateway_input:bytes(Input), [], State);
        false -> fetch(State)
    end;
decode(State) ->
    paused(State).

%% Gets more bytes to decode: from the frames of a WebSocket first, then from the socket.
fetch(State = #state{websocket = none}) ->
    reactivate(State);
fetch(State = #state{websocket = Websocket, input = Input}) ->
    case nats_gateway_websocket:take(Websocket) of
        {data, Data, NWebsocket} ->
            decode(add_input(Data, start_streams_timer(State#state{websocket = NWebsocket})));
        {empty, NWebsocket} ->
            reactivate(start_streams_timer(State#state{websocket = NWebsocket}));
        {ended, client_closed, Close, NWebsocket} ->
            NInput = nats_gateway_input:finish(eof, Close, Input),
            reactivate(State#state{websocket = NWebsocket, input = NInput});
        {ended, Reason, Close, NWebsocket} ->
            NInput = nats_gateway_input:finish({error, Reason}, Close, Input),
            reactivate(State#state{websocket = NWebsocket, input = NInput})
    end.

decode(Bytes, Out, State = #state{channel = Channel, input = Input}) ->
    Decoder = nats_gateway_channel:decoder(Channel),
    case nats_gateway_input:is_timed(Input) of
        false ->
            decoded(nats_gateway_nif:decode(Bytes, Decoder), Out, State);
        true ->
            Begin = erlang:monotonic_time(),
            Decoded = nats_gateway_nif:decode(Bytes, Decoder),
            ok = nats_gateway_durations:add(decode, erlang:monotonic_time() - Begin),
            decoded(Decoded, Out, State#state{input = nats_gateway_input:time(false, Input)})
    end.

decoded(Decoded, Out, State = #state{channel = Channel, input = Input}) ->
    case Decoded of
        {ok, Ops, Rest, Need} ->
            case nats_gateway_channel:handle_ops(Ops, Channel) of
                {ok, More, Next = {ready, _}, NChannel} when Need =:= 0, Rest =/= <<>> ->
                    decode(Rest, [Out | More], answered(Next, NChannel, State));
                {ok, More, Next, NChannel} ->
                    NState = State#state{input = nats_gateway_input:keep(Rest, Need, Input)},
                    continue(result({ok, [Out | More], Next, NChannel}, NState));
                {stop, Reason, More, NChannel} ->
                    result({stop, Reason, [Out | More], NChannel}, State)
            end;
        {error, Reason, Ops} ->
            Handled = nats_gateway_channel:handle_ops(Ops ++ [{error, Reason}], Channel),
            NState = State#state{input = nats_gateway_input:drop(Input)},
            case Handled of
                {ok, More, Next, NChannel} -> result({ok, [Out | More], Next, NChannel}, NState);
                {stop, R, More, NChannel} -> result({stop, R, [Out | More], NChannel}, NState)
            end
    end.

continue({noreply, State}) -> decode(State);
continue(Stop) -> Stop.

reactivate(State = #state{input = Input, channel = Channel, next = {Next, _}}) ->
    case nats_gateway_input:ended(Input) of
        false ->
            case nats_gateway_input:is_paused(Input) of
                true -> reactivate_socket(State);
                false -> {noreply, replenish(State)}
            end;
        Ended when Next =:= ready ->
            result(nats_gateway_channel:handle_ops([Ended], Channel), State);
        _ ->
            paused(State)
    end.

reactivate_socket(State = #state{input = Input, outbox = Outbox, next = {ready, _}}) ->
    Chunks = chunks(State),
    case activate(Chunks, State) of
        ok ->
            {noreply, State#state{input = nats_gateway_input:resume(Chunks, Input)}};
        {error, _} ->
            case nats_gateway_outbox:is_mute(Outbox) of
                true -> reactivate(State#state{input = nats_gateway_input:finish(eof, Input)});
                false -> stop_lost(State)
            end
    end;
reactivate_socket(State) ->
    paused(State).

%% If the input comes in large chunks, it waits in the kernel rather than in the mailbox.
chunks(#state{heap = Heap, options = Options}) ->
    case nats_gateway_heap:is_large(Heap) of
        true -> chunks(?FEW_CHUNKS, Options);
        false -> chunks(nats_gateway_transport:max_active_n(), Options)
    end.

chunks(Most, Options) -> min(Most, maps:get(active_n, Options, Most)).

activate(Chunks, #state{socket = Socket}) -> nats_gateway_transport:activate(Chunks, Socket).

%% The socket stays active while the client sends little at a time.
replenish(State = #state{input = Input, next = {ready, _}, heap = Heap}) ->
    case nats_gateway_input:left(Input) =< ?LOW andalso not nats_gateway_heap:is_large(Heap) of
        true -> replenish(chunks(State) div 2, State);
        false -> State
    end;
replenish(State) ->
    State.

replenish(Chunks, State = #state{socket = Socket, input = Input}) ->
    case Chunks > 0 andalso nats_gateway_input:left(Input) =< Chunks andalso
        nats_gateway_transport:replenish(Chunks, Socket) of
        ok -> State#state{input = nats_gateway_input:replenish(Chunks, Input)};
        %% The end of a socket comes as a message.
        _ -> State
    end.

%% The input waits for the host. The socket is asked whether the client is gone, because little of
%% the input of a client that is gone is worth the work.
paused(State = #state{timers = Timers}) when is_map_key(left, Timers) ->
    {noreply, State};
paused(State = #state{input = Input}) ->
    case nats_gateway_input:is_paused(Input) orelse nats_gateway_input:ended(Input) =/= false of
        true -> {noreply, start_timer(left, ?LEFT_MS, State)};
        false -> {noreply, State}
    end.

make_room(State = #state{channel = Channel, heap = Heap}) ->
    Held = nats_gateway_channel:held(Channel),
    State#state{heap = nats_gateway_heap:make_room(Held, Heap)}.

%% Keeps the channel's answer. The timer starts when the login has another end.
answered(Next = {_, Until}, Channel, State = #state{next = {_, Until}}) ->
    State#state{channel = Channel, next = Next};
answered(Next, Channel, State) ->
    start_login_timer(State#state{channel = Channel, next = Next}).

%% The one send of this turn.
result({ok, Out, Next = {Turn, _}, Channel}, State) ->
    case send(Out, answered(Next, Channel, State)) of
        {ok, NState} ->
            case Turn =:= behind orelse nats_gateway_channel:unsent(Channel) > 0 of
                true -> catch_up(now_ms() + ?BEHIND_MS, NState);
                false -> {noreply, make_room(NState)}
            end;
        {error, Reason, NState} ->
            {stop, {shutdown, send_error(Reason)}, NState}
    end;
result({stop, Reason, Out, Channel}, State) ->
    NState =
        case send(Out, State#state{channel = Channel}) of
            {ok, Sent} -> Sent;
            {error, _, Sent} -> Sent
        end,
    close(Reason, NState).

%% The channel's frames are written as long as the client takes them.
catch_up(Until, State) ->
    case check_pending(0, State) of
        {ok, NState = #state{next = {behind, _}, timers = Timers}} ->
            case now_ms() < Until of
                true -> write_more(Until, NState);
                false when is_map_key(behind, Timers) -> {noreply, NState};
                false -> {noreply, start_timer(behind, 0, NState)}
            end;
        {ok, NState} ->
            {noreply, NState};
        {error, Reason, NState} ->
            {stop, {shutdown, send_error(Reason)}, NState}
    end.

write_more(Until, State = #state{channel = Channel}) ->
    case nats_gateway_channel:continue(Channel) of
        {ok, Out, Next, NChannel} ->
            case send(Out, answered(Next, NChannel, State)) of
                {ok, NState} -> catch_up(Until, NState);
                {error, Reason, NState} -> {stop, {shutdown, send_error(Reason)}, NState}
            end;
        Stop ->
            result(Stop, State)
    end.

send(_, State = #state{socket = undefined}) ->
    %% Nothing is sent in the middle of a handshake.
    {ok, State};
send(Out, State = #state{outbox = Outbox}) ->
    case nats_gateway_outbox:is_mute(Outbox) orelse iolist_size(Out) of
        true -> {ok, State};
        0 -> {ok, State};
        Size -> send(Out, Size, max_piece(State), State)
    end.

max_piece(#state{websocket = none, socket = Socket}) ->
    case nats_gateway_transport:is_secured(Socket) of
        true -> ?MAX_PIECE;
        false -> infinity
    end;
max_piece(#state{websocket = Websocket, channel = Channel}) ->
    #decoder{max_payload = MaxPayload} = nats_gateway_channel:decoder(Channel),
    nats_gateway_websocket:max_frame(MaxPayload, Websocket).

%% `infinity' is an atom, and atoms are greater than numbers.
send(Out, Size, Max, State) when Size =< Max ->
    send_piece(Out, Size, 0, State);
send(Out, Size, Max, State) ->
    {Piece, Rest} = nats_gateway_transport:split(erlang:iolist_to_iovec(Out), Max),
    case send_piece(Piece, Max, Size - Max, State) of
        {ok, NState} -> send(Rest, Size - Max, Max, NState);
        Error -> Error
    end.

send_piece(Piece, Size, Behind, State = #state{websocket = none}) ->
    transmit(Piece, Size, Behind, State);
send_piece(Piece, Size, Behind, State) ->
    #state{websocket = Websocket, channel = Channel, outbox = Outbox} = State,
    case nats_gateway_outbox:is_mute(Outbox) of
        true ->
            {ok, State};
        false ->
            %% Only clients that have logged in get zlib's memory.
            Compress = nats_gateway_channel:is_connected(Channel),
            {Frame, NWebsocket} = nats_gateway_websocket:frame(Piece, Size, Compress, Websocket),
            transmit(Frame, Size, Behind, start_streams_timer(State#state{websocket = NWebsocket}))
    end.

%% `Behind' is the number of bytes that are to follow these.
transmit(Bytes, Size, Behind, State = #state{socket = Socket, outbox = Outbox}) ->
    case nats_gateway_outbox:is_mute(Outbox) orelse nats_gateway_transport:send(Socket, Bytes) of
        true ->
            {ok, State};
        ok ->
            case nats_gateway_outbox:sent(Size, Outbox) of
                {ok, NOutbox} -> {ok, State#state{outbox = NOutbox}};
                {check, NOutbox} -> check_pending(Behind, State#state{outbox = NOutbox})
            end;
        {error, Reason} ->
            case send_error(Reason) of
                client_closed -> {ok, mute(State)};
                _ -> {error, Reason, State}
            end
    end.

%% Over TLS nothing can be sent after the client's FIN. Much of the client's input may not have been
%% decoded by then, so only the end of the input ends the connection, as without TLS.
mute(State = #state{outbox = Outbox, heartbeat = Heartbeat}) ->
    start_timer(mute, ?MUTE_MS, State#state{
        outbox = nats_gateway_outbox:mute(Outbox),
        heartbeat = nats_gateway_heartbeat:wait_to_hear(Heartbeat)
    }).

%% Checks how many bytes wait for the client.
check_pending(Behind, State = #state{socket = Socket, channel = Channel, outbox = Outbox}) ->
    case nats_gateway_outbox:is_mute(Outbox) orelse nats_gateway_transport:pending(Socket) of
        true ->
            {ok, State};
        {ok, Pending, Gone} ->
            #state{options = #{config := #{max_pending := MaxPending}}} = State,
            {message_queue_len, Mailbox} = process_info(self(), message_queue_len),
            Waiting = Pending + Behind + nats_gateway_channel:unsent(Channel),
            {Handled, Most} = handled_messages(State),
            case nats_gateway_outbox:judge_pending(Waiting, {Mailbox, Most}, Handled, MaxPending, Outbox) of
                {slow_consumer, NOutbox} -> {error, slow_consumer, State#state{outbox = NOutbox}};
                {ok, NOutbox} when Pending > 0 ->
                    {ok, watch_progress(Gone, State#state{outbox = NOutbox})};
                {ok, NOutbox} -> {ok, State#state{outbox = NOutbox}}
            end;
        {error, _} ->
            {ok, mute(State)}
    end.

%% The mailbox holds the broker's messages one by one, or in chunks: of many messages, or of a part of one.
handled_messages(#state{inbox = Inbox, channel = Channel}) ->
    case nats_gateway_inbox:collects(Inbox) of
        true -> {nats_gateway_channel:fanned_out(Channel), infinity};
        false -> {nats_gateway_channel:sent(Channel), nats_gateway_transport:max_chunk()}
    end.

%% Bytes wait. From now on a timer checks whether some of them leave.
watch_progress(_, State = #state{timers = Timers}) when is_map_key(writing, Timers) ->
    State;
watch_progress(Gone, State = #state{outbox = Outbox}) ->
    check_progress_later(State#state{outbox = nats_gateway_outbox:watch_progress(Gone, Outbox)}).

check_progress_later(State = #state{options = #{config := #{send_timeout := SendTimeout}}}) ->
    start_timer(writing, nats_gateway_outbox:progress_interval(SendTimeout), State).

check_progress(State = #state{socket = Socket, outbox = Outbox}) ->
    case nats_gateway_outbox:is_mute(Outbox) orelse nats_gateway_transport:pending(Socket) of
        true ->
            {noreply, State};
        {ok, 0, _} ->
            send_kept_pong(State);
        {ok, _, Gone} ->
            progress_checked(nats_gateway_outbox:check_progress(Gone, Outbox), State);
        {error, _} ->
            {noreply, mute(State)}
    end.

progress_checked(slow_consumer, State) ->
    {stop, {shutdown, slow_consumer}, State};
progress_checked({stuck, Outbox}, State) ->
    {noreply, check_progress_later(State#state{outbox = Outbox})};
progress_checked({moves, Outbox}, State) ->
    send_kept_pong(check_progress_later(State#state{outbox = Outbox})).

send_kept_pong(State = #state{outbox = Outbox}) ->
    case nats_gateway_outbox:take_pong(Outbox) of
        none ->
            {noreply, State};
        {ok, Pong} ->
            case send_pong([Pong], State) of
                {ok, NState} -> {noreply, NState};
                {error, Reason, NState} -> {stop, {shutdown, send_error(Reason)}, NState}
            end
    end.

%% The reason for the end of a connection whose socket has failed.
send_error(timeout) -> slow_consumer;
send_error(Reason) when
    Reason =:= closed; Reason =:= epipe; Reason =:= econnreset; Reason =:= einval; Reason =:= tls_alert
->
    client_closed;
send_error(Reason) -> Reason.

%% EMQX counts reasons that are atoms, and takes other reasons for crashes.
close({error, Reason}, State) when is_atom(Reason) -> {stop, {shutdown, Reason}, State};
close({denied, _}, State) -> {stop, {shutdown, permission_denied}, State};
close(Reason, State) -> {stop, {shutdown, Reason}, State}.

%% -------------------------------------------------------------------------------------------
%% Timers

timeout(heartbeat, State = #state{heartbeat = Heartbeat, options = #{config := Config}}) ->
    case Config of
        #{default_heartbeat_interval := infinity} ->
            {noreply, State};
        #{default_heartbeat_interval := Interval} ->
            case nats_gateway_heartbeat:due_ms(now_ms(), Interval, Heartbeat) of
                Left when Left > 0 -> {noreply, start_timer(heartbeat, Left, State)};
                _ -> ping(State)
            end
    end;
timeout(heartbeat_wait, State = #state{input = Input, next = {Next, _}}) ->
    %% The input waits for the host, and the PONG may still be in the socket.
    case nats_gateway_input:is_paused(Input) of
        true when Next =/= ready -> {noreply, await_pong(State)};
        _ -> heartbeat_wait(State)
    end;
timeout(behind, State) ->
    case catch_up(now_ms() + ?BEHIND_MS, State) of
        {noreply, NState} -> decode(NState);
        Stop -> Stop
    end;
timeout(idle, State = #state{channel = Channel}) ->
    case nats_gateway_channel:handle_timeout(idle, Channel) of
        {ok, [], Next, NChannel} -> {noreply, answered(Next, NChannel, State), hibernate};
        Stop -> result(Stop, State)
    end;
timeout(report, State = #state{channel = Channel, report_times = Times}) ->
    %% Hibernation gives back the memory that the report took.
    Octets = nats_gateway_report:octets(State#state.socket),
    IsWatched = report_to_census(Octets, State),
    NChannel = nats_gateway_channel:report(Octets, Channel),
    NTimes = nats_gateway_report_times:reported(now_ms(), Times),
    NState = sample(IsWatched, State#state{channel = NChannel, report_times = NTimes}),
    case nats_gateway_channel:is_connected(NChannel) of
        %% Only a client that does not log in may be idle for too long.
        true -> {noreply, cancel_timer(idle, NState), hibernate};
        false -> {noreply, NState, hibernate}
    end;
timeout(streams, State = #state{websocket = Websocket}) ->
    {noreply, State#state{websocket = nats_gateway_websocket:at_rest(Websocket)}};
timeout(busy, State = #state{heap = Heap}) ->
    {noreply, make_room(State#state{heap = nats_gateway_heap:shrink(Heap)}), hibernate};
timeout(collect, State) ->
    hand_over_collected(State);
timeout(mute, State = #state{heartbeat = Heartbeat, next = {Next, _}}) ->
    case nats_gateway_heartbeat:was_heard(Heartbeat) of
        false when Next =:= ready ->
            {stop, {shutdown, client_closed}, State};
        _ ->
            Listening = State#state{heartbeat = nats_gateway_heartbeat:wait_to_hear(Heartbeat)},
            {noreply, start_timer(mute, ?MUTE_MS, Listening)}
    end;
timeout(left, State = #state{next = {ready, _}}) ->
    {noreply, State};
timeout(left, State = #state{channel = Channel, socket = Socket, input = Input}) ->
    HasEnded = nats_gateway_input:ended(Input) =/= false,
    case HasEnded orelse nats_gateway_transport:has_left(Socket) of
        true -> paused(State#state{channel = nats_gateway_channel:leave(Channel)});
        false -> paused(widen(State))
    end;
timeout(writing, State = #state{socket = undefined}) ->
    {noreply, State};
timeout(writing, State) ->
    check_progress(State);
timeout(drained, State) ->
    %% A listener that closes at this moment would take any other reason for a failure.
    {stop, normal, leave({shutdown, drained}, State)};
timeout(login, State = #state{channel = Channel, next = {_, Until}}) ->
    case now_ms() of
        Now when Now < Until -> {noreply, start_login_timer(State)};
        _ -> result(nats_gateway_channel:handle_timeout(login, Channel), State)
    end;
timeout(Name, State = #state{channel = Channel}) ->
    result(nats_gateway_channel:handle_timeout(Name, Channel), State).

%% The kernel tells the other side of the larger window when the next chunk is read.
widen(State = #state{input = Input, socket = Socket}) ->
    case nats_gateway_input:is_paused(Input) andalso not nats_gateway_input:is_wide(Input) of
        true ->
            ok = nats_gateway_transport:widen(Socket),
            Wide = nats_gateway_input:widen(Input),
            case nats_gateway_transport:activate(1, Socket) of
                ok -> State#state{input = nats_gateway_input:resume(1, Wide)};
                %% The end of the connection comes up when the input is read again.
                {error, _} -> State#state{input = Wide}
            end;
        false ->
            State
    end.

ping(State = #state{channel = Channel, socket = Socket, heartbeat = Heartbeat}) ->
    {Behind, Taken} =
        case nats_gateway_transport:taken(Socket) of
            {ok, _, Waiting, Before} -> {Waiting, Before};
            {error, _} -> {0, 0}
        end,
    result(
        nats_gateway_channel:handle_timeout(heartbeat, Channel),
        await_pong(State#state{
            heartbeat = nats_gateway_heartbeat:ping_sent(Behind, Taken, Heartbeat)
        })
    ).

%% Any input shows that the client is there, not only a PONG.
stop_awaiting_pong(State = #state{timers = Timers, options = #{config := Config}}) when
    is_map_key(heartbeat_wait, Timers)
->
    #{default_heartbeat_interval := Interval} = Config,
    start_timer(heartbeat, Interval, cancel_timer(heartbeat_wait, State));
stop_awaiting_pong(State) ->
    State.

await_pong(State = #state{options = #{config := #{heartbeat_wait_timeout := Wait}}}) ->
    start_timer(heartbeat_wait, Wait, State).

heartbeat_wait(State = #state{channel = Channel}) ->
    case still_taking(State) of
        {true, NState} -> {noreply, await_pong(NState)};
        false -> result(nats_gateway_channel:handle_timeout(heartbeat_wait, Channel), State)
    end.

still_taking(State = #state{socket = Socket, outbox = Outbox, heartbeat = Heartbeat}) ->
    case nats_gateway_outbox:is_mute(Outbox) orelse nats_gateway_transport:taken(Socket) of
        {ok, Pending, _, Taken} ->
            case nats_gateway_heartbeat:is_taking(Pending, Taken, Heartbeat) of
                {true, NHeartbeat} when Pending > 0 ->
                    {true, watch_progress(Taken, State#state{heartbeat = NHeartbeat})};
                {true, NHeartbeat} ->
                    {true, State#state{heartbeat = NHeartbeat}};
                false ->
                    false
            end;
        _ ->
            false
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% A stream in the middle of a message is kept. The next frame of that message starts the timer
%% again.
start_streams_timer(State = #state{websocket = Websocket, timers = Timers}) when
    not is_map_key(streams, Timers)
->
    case nats_gateway_websocket:has_streams(Websocket) of
        true -> start_timer(streams, ?STREAMS_MS, State);
        false -> State
    end;
start_streams_timer(State) ->
    State.

%% Some logins last longer than a timer can wait. The timer of an earlier login is forgotten here,
%% and its message is dropped.
start_login_timer(State = #state{next = {_, infinity}, timers = Timers}) ->
    State#state{timers = maps:remove(login, Timers)};
start_login_timer(State = #state{next = {_, Until}}) ->
    Left = max(0, Until - now_ms()),
    start_timer(login, min(Left, ?MAX_TIMER_MS), State).

report_later(State = #state{timers = Timers}) when is_map_key(report, Timers) ->
    State;
report_later(State = #state{report_times = Times}) ->
    case nats_gateway_report_times:is_on(Times) of
        true ->
            {Ms, NTimes} = nats_gateway_report_times:next(now_ms(), Times),
            start_timer(report, Ms, resume(State#state{report_times = NTimes}));
        false ->
            State
    end.

resume(State = #state{channel = undefined}) -> State;
resume(State = #state{channel = Channel}) -> State#state{channel = nats_gateway_channel:resume(Channel)}.

start_timer(_, infinity, State) ->
    State;
start_timer(Name, Ms, State = #state{timers = Timers}) ->
    State#state{timers = Timers#{Name => erlang:start_timer(Ms, self(), Name)}}.

cancel_timer(Name, State = #state{timers = Timers}) ->
    case maps:take(Name, Timers) of
        {Timer, NTimers} ->
            %% If the timer has ended already, its message is dropped, because no timer has its
            %% reference.
            _ = erlang:cancel_timer(Timer, [{async, true}, {info, false}]),
            State#state{timers = NTimers};
        error ->
            State
    end.

%% -------------------------------------------------------------------------------------------

terminate(Reason, State = #state{establishing = Establishing}) ->
    case nats_gateway_establishing:worker(Establishing) of
        undefined ->
            close_socket(Reason, State);
        Worker ->
            %% In the middle of a handshake nothing can be sent to the client.
            ok = nats_gateway_handshake:stop(Worker),
            _ = leave(Reason, State),
            ok
    end.

close_socket(Reason, State = #state{socket = undefined}) ->
    _ = leave(Reason, State),
    ok;
close_socket(Reason, State = #state{socket = Socket}) ->
    %% This is the reason when the listener closes.
    _ = Reason =:= shutdown andalso send_lame_duck(State),
    _ = leave(Reason, State),
    case nats_gateway_ending:socket(shutdown_reason(Reason)) of
        abort ->
            nats_gateway_transport:abort(Socket);
        _ when State#state.websocket =/= none ->
            _ = nats_gateway_transport:send(Socket, farewell(Reason, State)),
            nats_gateway_transport:linger_close(Socket);
        close ->
            nats_gateway_transport:close(Socket);
        linger ->
            nats_gateway_transport:linger_close(Socket)
    end.

farewell(Reason, #state{input = Input}) ->
    case nats_gateway_input:farewell(Input) of
        none ->
            {Code, Text} = nats_gateway_ending:websocket_close(shutdown_reason(Reason)),
            nats_gateway_websocket:close_frame(Code, Text);
        Close ->
            Close
    end.

shutdown_reason({shutdown, Reason}) -> Reason;
shutdown_reason(Reason) -> Reason.

send_lame_duck(State = #state{channel = undefined}) ->
    {ok, State};
send_lame_duck(State = #state{channel = Channel}) ->
    send(nats_gateway_channel:lame_duck(Channel), State).

%% The host is told before the socket is closed, because closing may take a while.
leave(_, State = #state{channel = undefined}) ->
    State;
leave(Reason, State = #state{socket = Socket, channel = Channel, report_times = Times}) ->
    ok = log_end(Reason, State),
    Octets =
        case nats_gateway_report_times:is_on(Times) orelse nats_gateway_census:is_on() of
            true -> nats_gateway_report:octets(Socket);
            false -> #{}
        end,
    ok = nats_gateway_client_events:disconnected(
        Reason,
        nats_gateway_channel:is_connected(Channel),
        fun() -> nats_gateway_report:figures(Octets, Socket, Channel) end,
        fun() -> nats_gateway_channel:event_facts(Channel) end
    ),
    ok = nats_gateway_census:leave(Reason, fun() ->
        {
            nats_gateway_report:figures(Octets, Socket, Channel),
            nats_gateway_channel:description(Channel)
        }
    end),
    Last =
        case nats_gateway_report_times:is_on(Times) of
            true -> nats_gateway_channel:report(Octets, Channel);
            false -> Channel
        end,
    {Messages, NInbox} = nats_gateway_inbox:take(erlang:monotonic_time(microsecond), State#state.inbox),
    ok = nats_gateway_channel:terminate(Reason, Messages, Last),
    State#state{channel = undefined, inbox = NInbox}.

log_end(Reason, State = #state{options = Options, establishing = Establishing}) ->
    #{listener := Listener, config := #{enable_stats := EnableStats}} = Options,
    nats_gateway_report:log_end(Reason, #{
        socket => State#state.socket,
        channel => State#state.channel,
        listener => Listener,
        peername => nats_gateway_establishing:peername(Establishing),
        detail => nats_gateway_establishing:detail(Establishing),
        stats => EnableStats
    }).

enter_census(Channel, #state{options = #{listener := Listener}}) ->
    nats_gateway_census:enter(nats_gateway_channel:client_id(Channel), Listener, #{}).

%% Returns whether somebody watches.
report_to_census(Octets, #state{options = #{listener := Listener}, socket = Socket, channel = Channel}) ->
    nats_gateway_report:to_census(Octets, Listener, Socket, Channel).

%% After each report that somebody sees, the next call of the library in each direction is timed. So
%% rare a measurement costs nothing.
sample(true, State = #state{channel = Channel, input = Input}) ->
    State#state{
        input = nats_gateway_input:time(true, Input),
        channel = nats_gateway_channel:sample(Channel)
    };
sample(false, State) ->
    State.

%% The client's bytes are not shown, because they may hold credentials.
format_status(Status = #{state := State}) ->
    #state{channel = Channel, establishing = Establishing, input = Input, timers = Timers} = State,
    Status#{
        state := #{
            phase => State#state.phase,
            peername => nats_gateway_establishing:peername(Establishing),
            buffered => nats_gateway_input:size(Input),
            need => nats_gateway_input:need(Input),
            timers => maps:keys(Timers),
            channel => Channel =/= undefined andalso nats_gateway_channel:info(Channel)
        }
    }.
