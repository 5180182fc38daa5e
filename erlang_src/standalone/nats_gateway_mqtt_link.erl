%% A connection to the broker that a client's key/value store has for itself: it reads retained
%% messages, writes them, and watches them. It logs in as the client does, under another client id.
%%
%% It does one request at a time. A subscription with the same filter would take the place of another
%% one, so each watcher has a connection of its own. The process ends with the one that started it,
%% and that one ends when the broker ends the connection.
-module(nats_gateway_mqtt_link).

-behaviour(gen_server).

-export([start_link/1]).
-export([read/2]).
-export([publish/2]).
-export([watch/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-export_type([login/0, failure/0]).

-include("nats_gateway_mqtt.hrl").

%% Keeps the password out of reports.
-type login() :: fun(() -> #{
    upstream := nats_gateway_upstream:upstream(),
    client_id := binary(),
    username := undefined | binary(),
    password := undefined | binary(),
    max_received := pos_integer()
}).

-type failure() :: {refused, Reason :: byte()}.

%% Filters, and what becomes of each message.
-type read() :: {[Filter :: binary()], fun((#publish{}) -> term())}.

-type request() :: {read, read()} | {publish, #publish{}} | {watch, Filter :: binary()}.

-record(state, {
    owner :: pid(),
    client :: nats_gateway_mqtt_client:client(),
    %% the request under way, what it has found, latest first, and why it failed
    current = none :: none | {gen_server:from(), request()},
    found = [] :: [term()],
    failure = none :: none | failure(),
    waiting = queue:new() :: queue:queue({gen_server:from(), request()}),
    watches = false :: boolean()
}).

%% What is read is what is retained now: nothing that comes later.
-define(SEND_RETAINED, 0).
-define(NO_RETAINED, 2).

-define(FIRST_REFUSAL, 16#80).

-spec start_link(login()) -> {ok, pid()} | {error, term()}.
start_link(Login) -> nats_gateway_guard:start_link(?MODULE, {self(), Login}).

%% What the function makes of each message that is retained for the filters, when it comes. The messages
%% themselves are not kept.
-spec read(pid(), read()) -> {ok, [term()]} | {error, failure()}.
read(Pid, Read) -> gen_server:call(Pid, {read, Read}, infinity).

%% The packet has QoS 1.
-spec publish(pid(), #publish{}) -> {ok, []} | {error, failure()}.
publish(Pid, Packet) -> gen_server:call(Pid, {publish, Packet}, infinity).

%% The process that started the link gets `{nats_gateway_mqtt_link, #publish{}}' from now on, with the
%% flag that says whether the publisher wants the message to be retained.
-spec watch(pid(), Filter :: binary()) -> {ok, []} | {error, failure()}.
watch(Pid, Filter) -> gen_server:call(Pid, {watch, Filter}, infinity).

%% -------------------------------------------------------------------------------------------

init({Owner, Login}) ->
    #{upstream := Upstream, client_id := Id, username := Username, password := Password} =
        Options = Login(),
    #{connect_timeout := Timeout, keepalive := KeepAlive} = Upstream,
    Connect = #connect{
        client_id = Id, username = Username, password = Password, keepalive = KeepAlive
    },
    _ = process_flag(trap_exit, true),
    case nats_gateway_upstream:open(Upstream, Timeout) of
        {ok, Socket} ->
            Started = nats_gateway_mqtt_client:start(Socket, Connect, #{
                timeout => Timeout,
                keepalive => KeepAlive,
                max_received => maps:get(max_received, Options),
                watched => false
            }),
            case Started of
                {ok, Client} -> await_connection(#state{owner = Owner, client = Client});
                {error, _} -> {stop, {shutdown, broker_gone}}
            end;
        {error, _} ->
            {stop, {shutdown, broker_gone}}
    end.

await_connection(State = #state{client = Client}) ->
    receive
        Message ->
            case nats_gateway_mqtt_client:handle_info(Message, Client) of
                ignore ->
                    await_connection(State);
                {[], NClient} ->
                    await_connection(State#state{client = NClient});
                {[{connected, #{maximum_qos := 0}} | _], _} ->
                    {stop, {shutdown, no_qos}};
                {[{connected, _} | _], NClient} ->
                    {ok, State#state{client = NClient}};
                {[{refused, Reason, _} | _], _} ->
                    {stop, {shutdown, {refused, Reason}}};
                {_, _} ->
                    {stop, {shutdown, broker_gone}}
            end
    end.

handle_call(Request, From, State = #state{current = none}) ->
    {noreply, start(From, Request, State)};
handle_call(Request, From, State = #state{waiting = Waiting}) ->
    {noreply, State#state{waiting = queue:in({From, Request}, Waiting)}}.

handle_cast(_, State) -> {noreply, State}.

handle_info({'EXIT', Owner, _}, State = #state{owner = Owner}) ->
    {stop, {shutdown, owner_gone}, State};
handle_info(Message, State = #state{client = Client}) ->
    case nats_gateway_mqtt_client:handle_info(Message, Client) of
        ignore -> {noreply, State};
        {Events, NClient} -> events(Events, State#state{client = NClient})
    end.

terminate(_, #state{client = Client}) -> nats_gateway_mqtt_client:stop(Client).

format_status(Status = #{state := #state{waiting = Waiting, watches = Watches}}) ->
    Status#{state := #{waiting => queue:len(Waiting), watches => Watches}}.

%% -------------------------------------------------------------------------------------------

%% All answers of the broker come before that to the barrier, and so do the messages that it has
%% retained.
start(From, Request, State = #state{client = Client}) ->
    Items =
        case Request of
            {read, {Filters, _}} ->
                [{#subscribe{filters = [{Filter, 0, false, ?SEND_RETAINED}]}, asked} || Filter <- Filters];
            {publish, Packet} ->
                [{Packet, asked}];
            {watch, Filter} ->
                [{#subscribe{filters = [{Filter, 1, false, ?NO_RETAINED, true}]}, asked}]
        end,
    Sent = nats_gateway_mqtt_client:send(Items, Client),
    NState = State#state{
        current = {From, Request}, found = [], failure = none, watches = is_watch(Request, State)
    },
    case nats_gateway_mqtt_client:barrier(all, Sent) of
        {wait, NClient} -> NState#state{client = NClient};
        {ok, NClient} -> done(NState#state{client = NClient})
    end.

is_watch({watch, _}, _) -> true;
is_watch(_, #state{watches = Watches}) -> Watches.

events([], State) ->
    {noreply, State};
events([Packet = #publish{} | Events], State) ->
    events(Events, message(Packet, State));
events([{answer, asked, Reason} | Events], State) when Reason >= ?FIRST_REFUSAL ->
    events(Events, State#state{failure = {refused, Reason}});
events([{answer, _, _} | Events], State) ->
    events(Events, State);
events([barrier | Events], State) ->
    events(Events, done(State));
events([{closed, _, _} | _], State) ->
    {stop, {shutdown, broker_gone}, State};
events([_ | Events], State) ->
    events(Events, State).

%% Here the flag is all that counts.
message(Packet = #publish{retain = {Retain, _, _}}, State) ->
    message(Packet#publish{retain = Retain}, State);
message(Packet, State = #state{watches = true, owner = Owner}) ->
    Owner ! {?MODULE, Packet},
    State;
message(#publish{retain = true, payload = <<>>}, State) ->
    State;
message(Packet = #publish{retain = true}, State = #state{current = {_, {read, {_, Fun}}}, found = Found}) ->
    State#state{found = [Fun(Packet) | Found]};
%% published while its topic is read, or read for a request that is done
message(_, State) ->
    State.

done(State = #state{current = {From, Request}, found = Found, failure = Failure, client = Client}) ->
    NClient =
        case Request of
            {read, {Filters, _}} ->
                Items = [{#unsubscribe{filters = [Filter]}, ended} || Filter <- Filters],
                nats_gateway_mqtt_client:send(Items, Client);
            _ ->
                Client
        end,
    ok =
        case Failure of
            none -> gen_server:reply(From, {ok, lists:reverse(Found)});
            _ -> gen_server:reply(From, {error, Failure})
        end,
    next(State#state{client = NClient, current = none, found = []}).

next(State = #state{waiting = Waiting}) ->
    case queue:out(Waiting) of
        {{value, {From, Request}}, Rest} -> start(From, Request, State#state{waiting = Rest});
        {empty, _} -> State
    end.
