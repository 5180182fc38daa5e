%% The listeners of the gateway. This module opens, changes and closes them.
%%
%% EMQX's esockd accepts the connections of TCP and TLS, and EMQX's ranch those of WebSocket. Each
%% has a module with this behaviour. The connection itself does TLS and WebSocket, whoever has
%% accepted it. A connection looks up its settings under the key of its listener.
-module(nats_gateway_emqx_listeners).

-export([new/3]).
-export([id/1]).
-export([problem/1]).
-export([replace/2]).
-export([close/1]).
-export([close_left/1]).
-export([drain/2]).

-export_type([listener/0, id/0, problem/0]).

-include_lib("kernel/include/logger.hrl").

%% A listener on another address is another listener. EMQX looks a listener up by name and address.
-type id() :: {
    Name :: atom(), Bind :: inet:port_number() | {inet:ip_address(), inet:port_number()}
}.

%% What connections may take to end, after their time is over. Together with the longest drain time
%% it has to be less than the 10 s that EMQX gives a plugin to stop.
-define(END_MS, 500).

-record(listener, {
    module :: nats_gateway_emqx_esockd | nats_gateway_emqx_ranch,
    id :: id(),
    %% made by the module's `options/2'
    options :: term(),
    %% looked up by each connection
    connection :: map(),
    tls :: none | nats_gateway_tls:settings()
}).

-opaque listener() :: #listener{}.

-type problem() ::
    {tls, Name :: atom(), nats_gateway_tls:problem()}
    | {listen, Name :: atom(), Bind :: string(), Text :: binary()}.

%% Makes the module's options from EMQX's settings of the listener.
-callback options(nats_gateway_emqx_config:listener(), AccessRules :: [term()]) ->
    Options :: term().
%% Whether one listener has to be closed before the other can be opened, wherever they listen.
-callback excludes(id(), id()) -> boolean().
-callback open(id(), Options :: term(), Key :: term()) ->
    {ok, pid()} | {error, {already_started, pid()} | Reason :: term()}.
%% The connections stay open. After an error the listener has to be closed and opened again.
-callback change(id(), Old :: term(), New :: term(), Key :: term()) -> ok | {error, term()}.
%% Also closes the connections. The listener may be gone already.
-callback stop(id()) -> ok.
-callback stop_accepting(id()) -> ok.
-callback connections(id()) -> [pid()].

%% -------------------------------------------------------------------------------------------

%% Makes a listener from EMQX's settings of it, its connections' settings, and the plugin's page.
-spec new(nats_gateway_emqx_config:listener(), Connection :: map(), Page :: map()) -> listener().
new(Configured = #{conf := Conf}, Connection, Page) ->
    Id = configured_id(Configured),
    Module = module(Configured),
    AccessRules = emqx_listeners:esockd_access_rules(maps:get(access_rules, Conf, [])),
    Listener = #listener{
        module = Module,
        id = Id,
        options = Module:options(Configured, AccessRules),
        connection = Connection,
        tls = none
    },
    case tls(Configured, Id, Page) of
        none ->
            Listener;
        Tls ->
            Listener#listener{
                connection = Connection#{tls => nats_gateway_tls:plan(Tls)}, tls = Tls
            }
    end.

module(#{id := {Type, _}}) when Type =:= ws; Type =:= wss -> nats_gateway_emqx_ranch;
module(#{id := {Type, _}}) when Type =:= tcp; Type =:= ssl -> nats_gateway_emqx_esockd.

tls(Configured = #{id := {Type, _}, conf := Conf}, Id, Page) when
    Type =:= ssl; Type =:= wss
->
    #{ssl_options := Ssl} = Conf,
    Options = emqx_tls_lib:to_server_opts(tls, Ssl),
    nats_gateway_emqx_config:tls(Configured, key(Id), Options, Page);
tls(_, _, _) ->
    none.

configured_id(#{id := Name, bind := Bind}) ->
    {nats_gateway_emqx_config:listener_id(Name), Bind}.

%% The address is part of the key, because a listener that moves has two addresses for a while.
key(Id) -> {nats_gateway_connection, Id}.

-spec id(listener()) -> id().
id(#listener{id = Id}) -> Id.

%% Finds the problems that are visible before anything is changed.
-spec problem([listener()]) -> none | problem().
problem([]) ->
    none;
problem([#listener{tls = none} | Listeners]) ->
    problem(Listeners);
problem([#listener{id = {Name, _}, tls = Tls} | Listeners]) ->
    case nats_gateway_tls:load(Tls) of
        {ok, _} -> problem(Listeners);
        {error, Problem} -> {tls, Name, Problem}
    end.

%% -------------------------------------------------------------------------------------------
%% Changes

%% After an error the old listeners are open again, as far as that is possible.
-spec replace(Old :: [listener()], New :: [listener()]) -> ok | {error, problem()}.
replace(Old, New) ->
    {Keep, Open} = lists:partition(fun(L) -> is_one_of(L, Old) end, New),
    Close = [L || L <- Old, not is_one_of(L, New)],
    %% One listener may take over another's port. All others are kept until the new ones are open.
    {InTheWay, Others} = lists:partition(fun(L) -> is_in_the_way(L, Open) end, Close),
    close(InTheWay),
    case open_all(Open) of
        ok ->
            close(Others),
            lists:foreach(fun(Listener) -> change(find(Listener, Old), Listener) end, Keep);
        {error, Problem} ->
            _ = open_all(InTheWay),
            {error, Problem}
    end.

is_one_of(Listener, Listeners) -> find(Listener, Listeners) =/= false.

find(#listener{id = Id}, Listeners) ->
    lists:keyfind(Id, #listener.id, Listeners).

is_in_the_way(#listener{module = Module, id = Id = {_, Bind}}, Open) ->
    lists:any(
        fun(#listener{id = Other = {_, OtherBind}}) ->
            port(Bind) =:= port(OtherBind) orelse Module:excludes(Id, Other)
        end,
        Open
    ).

port({_, Port}) -> Port;
port(Port) -> Port.

%% Opens all of them or none.
open_all([]) ->
    ok;
open_all([Listener | Listeners]) ->
    case open(Listener) of
        ok ->
            case open_all(Listeners) of
                ok ->
                    ok;
                {error, Problem} ->
                    close([Listener]),
                    {error, Problem}
            end;
        {error, Problem} ->
            {error, Problem}
    end.

open(Listener) ->
    case publish_certificates(Listener) of
        ok -> start(Listener);
        {error, Problem} -> {error, Problem}
    end.

start(Listener = #listener{id = Id = {Name, Bind}}) ->
    _ = publish_connection(Listener),
    case start_anew(Listener) of
        {ok, _} ->
            ?LOG_INFO(#{msg => "listener_started", listener => Name, bind => text(Bind)}),
            ok;
        {error, Reason} ->
            ok = unpublish(Id),
            {error, {listen, Name, nats_gateway_address:format(Bind), explain(Reason)}}
    end.

%% If the listener exists already, a killed gateway has left it. Its connections do not have our
%% settings.
start_anew(#listener{module = Module, id = Id, options = Options}) ->
    case Module:open(Id, Options, key(Id)) of
        {error, {already_started, _}} ->
            ok = Module:stop(Id),
            Module:open(Id, Options, key(Id));
        Started ->
            Started
    end.

explain(Reason) when is_atom(Reason) ->
    iolist_to_binary(["cannot listen: ", inet:format_error(Reason)]);
explain(Reason) ->
    iolist_to_binary(io_lib:format("cannot listen: ~0p", [Reason])).

%% Parts that are the same are not touched, so neither acceptors nor connections notice.
change(Old, New = #listener{module = Module, id = Id}) ->
    case publish_certificates(New) of
        ok -> ok;
        {error, {tls, _, Problem}} -> ?LOG_ERROR(#{msg => "tls_not_changed", reason => Problem})
    end,
    Old#listener.options =:= New#listener.options orelse change_options(Old, New),
    case publish_connection(New) of
        unchanged ->
            ok;
        changed ->
            lists:foreach(
                fun nats_gateway_connection:configure/1, Module:connections(Id)
            )
    end.

change_options(#listener{options = Old}, Listener = #listener{options = New}) ->
    #listener{module = Module, id = Id = {Name, _}} = Listener,
    case Module:change(Id, Old, New, key(Id)) of
        ok ->
            ?LOG_INFO(#{msg => "listener_updated", listener => Name});
        {error, Reason} ->
            ?LOG_WARNING(#{msg => "listener_reopened", listener => Name, reason => Reason}),
            ok = Module:stop(Id),
            case open(Listener) of
                ok -> ok;
                {error, Problem} ->
                    ?LOG_ERROR(#{msg => "listener_lost", listener => Name, reason => Problem})
            end
    end.

-spec close([listener()]) -> ok.
close(Listeners) ->
    lists:foreach(
        fun(#listener{module = Module, id = Id}) -> close(Module, Id) end,
        Listeners
    ).

%% Closes listeners that a killed gateway has left open.
-spec close_left([nats_gateway_emqx_config:listener()]) -> ok.
close_left(Configured) ->
    lists:foreach(
        fun(Listener) -> close(module(Listener), configured_id(Listener)) end,
        Configured
    ).

close(Module, Id = {Name, Bind}) ->
    ok = Module:stop(Id),
    ok = unpublish(Id),
    ?LOG_INFO(#{msg => "listener_stopped", listener => Name, bind => text(Bind)}).

%% Lets nobody in any more. The clients are asked to go elsewhere, and get some time for that.
-spec drain([listener()], Milliseconds :: non_neg_integer()) -> ok.
drain(_, 0) ->
    ok;
drain(Listeners, Ms) ->
    Pids = lists:flatmap(
        fun(#listener{module = Module, id = Id}) ->
            ok = Module:stop_accepting(Id),
            Module:connections(Id)
        end,
        Listeners
    ),
    Monitors = [
        begin
            ok = nats_gateway_connection:drain(Pid, Ms),
            monitor(process, Pid)
        end
     || Pid <- Pids
    ],
    nats_gateway_emqx_down:await(Monitors, Ms + ?END_MS).

%% -------------------------------------------------------------------------------------------
%% What connections look up

publish_connection(#listener{id = Id, connection = Connection}) ->
    nats_gateway_connection:publish(key(Id), Connection).

publish_certificates(#listener{tls = none}) ->
    ok;
publish_certificates(#listener{id = {Name, _}, tls = Tls}) ->
    case nats_gateway_tls:publish(Tls) of
        ok -> ok;
        {error, Problem} -> {error, {tls, Name, Problem}}
    end.

unpublish(Id) ->
    _ = persistent_term:erase(key(Id)),
    nats_gateway_tls:forget(key(Id)).

text(Bind) -> list_to_binary(nats_gateway_address:format(Bind)).
