%% The HTTP endpoints of a nats-server for those who watch it, and `/metrics' for Prometheus, on a
%% port of their own. Anybody who reaches it reads all of it, as with nats-server: it is for loopback,
%% or a network of operators.
-module(nats_gateway_monitor).

-behaviour(gen_server).

-export([count_clients/0]).
-export([open/2]).
-export([change/3]).
-export([forget/0]).
-export([start_child/1]).
-export([stop_child/1]).
-export([served/0]).
-export([start_link/1]).
-export([answer/2]).
-export([connz_options/1]).
-export([subsz_options/1]).
-export([do/1]).
-export([init/1, handle_call/3, handle_cast/2, terminate/2]).

-include_lib("inets/include/httpd.hrl").
-include_lib("kernel/include/logger.hrl").

-export_type([options/0, bind/0]).

-type bind() :: undefined | {inet:ip_address(), inet:port_number()}.

-type options() :: #{
    bind := bind(),
    %% asked for at each request
    gateway := fun(() -> nats_gateway_monitor_facts:gateway())
}.

%% Requests that are under way at the same time, and the size of their heads.
-define(MAX_CLIENTS, 32).
-define(MAX_HEADER, 8192).
%% What the requests that are under way may take when it is closed.
-define(STOP_MS, 4000).

%% As nats-server.
-define(LIMIT, 1024).
-define(MAX_LIMIT, 10000).

-define(JSON, "application/json").

%% The supervisor of the application.
-define(SUPERVISOR, nats_gateway_sup).

%% Before the first client comes, where it is known that somebody will watch.
-spec count_clients() -> ok.
count_clients() -> start_child(child_spec(nats_gateway_census, [])).

-spec open(bind(), fun(() -> nats_gateway_monitor_facts:gateway())) ->
    ok | {error, inet:posix() | term()}.
open(undefined, _) ->
    ok;
open(Bind, Gateway) ->
    ok = count_clients(),
    Child = child_spec(?MODULE, [#{bind => Bind, gateway => Gateway}]),
    case supervisor:start_child(?SUPERVISOR, Child) of
        {ok, _} -> ok;
        {error, {{shutdown, {listen, Reason}}, _}} -> {error, Reason};
        {error, Reason} -> {error, Reason}
    end.

child_spec(Module, Arguments) -> #{id => Module, start => {Module, start_link, Arguments}}.

%% Below the supervisor of the application, where it may run already.
-spec start_child(supervisor:child_spec()) -> ok.
start_child(Child) ->
    case supervisor:start_child(?SUPERVISOR, Child) of
        {ok, _} -> ok;
        {error, {already_started, _}} -> ok;
        %% It has failed too often, and so has the supervisor, soon.
        {error, already_present} -> ok
    end.

%% If the new port cannot be opened, the old one stays. A client that was there before the first one
%% was opened is counted when its settings change, or when it does something and its host is told
%% statistics.
-spec change(Old :: bind(), New :: bind(), fun(() -> nats_gateway_monitor_facts:gateway())) ->
    ok | {error, inet:posix() | term()}.
change(Same, Same, _) ->
    ok;
change(Old, New, Gateway) ->
    case can_listen(New) of
        ok ->
            ok = close(Old),
            open(New, Gateway);
        {error, Reason} ->
            {error, Reason}
    end.

%% httpd would say it in four reports of its supervisors.
can_listen(undefined) ->
    ok;
can_listen({Address, Port}) ->
    case gen_tcp:listen(Port, [family(Address), {ip, Address}, {reuseaddr, true}]) of
        {ok, Socket} -> gen_tcp:close(Socket);
        {error, Reason} -> {error, Reason}
    end.

%% Nothing is left of it, nor of the totals.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    nats_gateway_census:forget().

%% How often which path was asked for, and where it is open.
-spec served() -> {Requests :: #{binary() => non_neg_integer()}, bind()}.
served() ->
    case persistent_term:get(?MODULE, none) of
        none -> {#{}, undefined};
        #{bind := Bind, requests := Requests} -> {requests(Requests), Bind}
    end.

close(undefined) ->
    ok;
close(_) ->
    _ = persistent_term:erase(?MODULE),
    stop_child(?MODULE).

%% When the application ends, its supervisor has ended what was started last before it waits for the
%% process that may call this: then it must not be asked.
-spec stop_child(module()) -> ok.
stop_child(Module) ->
    case whereis(Module) of
        undefined ->
            ok;
        _ ->
            _ = supervisor:terminate_child(?SUPERVISOR, Module),
            _ = supervisor:delete_child(?SUPERVISOR, Module),
            ok
    end.

family({_, _, _, _}) -> inet;
family(_) -> inet6.

-spec start_link(options()) -> gen_server:start_ret().
start_link(Options) -> gen_server:start_link({local, ?MODULE}, ?MODULE, Options, []).

init(Options = #{bind := Bind}) ->
    _ = process_flag(trap_exit, true),
    %% No application of ours: a gateway that nobody watches starts faster without it.
    {ok, _} = application:ensure_all_started(inets),
    case can_listen(Bind) of
        ok -> serve(Bind, Options);
        {error, Reason} -> {stop, {shutdown, {listen, Reason}}}
    end.

serve({Address, Port}, Options) ->
    Root = code:priv_dir(nats_gateway),
    Settings = [
        {bind_address, Address},
        {ipfamily, family(Address)},
        {port, Port},
        {server_name, "nats_gateway"},
        {server_tokens, none},
        %% No file is served; httpd wants to know where they would be.
        {server_root, Root},
        {document_root, Root},
        {modules, [?MODULE]},
        {max_clients, ?MAX_CLIENTS},
        {max_header_size, ?MAX_HEADER},
        {max_body_size, 1},
        {keep_alive_timeout, 30}
    ],
    Requests = counters:new(length(paths()), []),
    ok = persistent_term:put(?MODULE, Options#{requests => Requests}),
    %% httpd takes connections before it has read all of its settings: to whoever asks before this call
    %% has returned, it may answer 500. What the gateway says of an open port is said after that.
    case inets:start(httpd, Settings, stand_alone) of
        {ok, Pid} ->
            {ok, Pid};
        {error, Reason} ->
            {stop, {shutdown, {listen, Reason}}}
    end.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.

terminate(_, Pid) ->
    Monitor = erlang:monitor(process, Pid),
    _ = inets:stop(stand_alone, Pid),
    %% The port must be free when this process is gone.
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    after ?STOP_MS ->
        ok
    end.

%% httpd's callback.
-spec do(#mod{}) -> {proceed, list()}.
do(#mod{method = Method, request_uri = Target}) when Method =:= "GET"; Method =:= "HEAD" ->
    case persistent_term:get(?MODULE, none) of
        none -> respond(503, "text/plain", <<"closed\n">>, Method);
        Options -> look_up(Method, Target, Options)
    end;
do(#mod{method = Method}) ->
    respond(405, "text/plain", <<"only GET and HEAD\n">>, Method).

look_up(Method, Target, #{bind := Bind, gateway := Gateway, requests := Requests}) ->
    {Path, Query} =
        case string:split(Target, "?") of
            [P] -> {P, ""};
            [P, Q] -> {P, Q}
        end,
    count(Path, Requests),
    {Code, Type, Body} =
        try
            answer({list_to_binary(Path), query(Query)}, {requests(Requests), Bind, Gateway()})
        catch
            throw:{bad_request, Text} ->
                {400, "text/plain", Text};
            Class:Reason:Stack ->
                Caught = nats_gateway_guard:caught(Class, Reason, Stack),
                ?LOG_ERROR(Caught#{msg => monitor_failed, path => list_to_binary(Path)}),
                {500, "text/plain", <<"the gateway could not tell: its log says why\n">>}
        end,
    respond(Code, Type, iolist_to_binary(Body), Method).

respond(Code, Type, Body, Method) ->
    Head = [
        {code, Code},
        {content_type, Type},
        {content_length, integer_to_list(byte_size(Body))},
        {cache_control, "no-store"}
        | [{allow, "GET, HEAD"} || Code =:= 405]
    ],
    case Method of
        "HEAD" -> {proceed, [{response, {response, Head, nobody}}]};
        _ -> {proceed, [{response, {response, Head, [Body]}}]}
    end.

paths() -> ["/", "/varz", "/connz", "/subsz", "/accountz", "/accstatz", "/healthz", "/metrics"].

count(Path, Requests) ->
    case [Place || {Place, Known} <- lists:enumerate(paths()), Known =:= Path] of
        [Place] -> counters:add(Requests, Place, 1);
        [] -> ok
    end.

requests(Requests) ->
    maps:from_list([
        {list_to_binary(Path), counters:get(Requests, Place)}
     || {Place, Path} <- lists:enumerate(paths())
    ]).

query(Query) ->
    case uri_string:dissect_query(Query) of
        {error, _, _} -> bad_request(<<"the query cannot be read">>);
        Pairs -> maps:from_list([{iolist_to_binary(K), value(V)} || {K, V} <- Pairs])
    end.

%% A name alone is a switch.
value(true) -> <<"1">>;
value(Value) -> unicode:characters_to_binary(Value).

-spec bad_request(binary()) -> no_return().
bad_request(Text) -> throw({bad_request, [Text, $\n]}).

%% {status, media type, body} of a path with its parameters.
-spec answer({Path :: binary(), #{binary() => binary()}}, {Requests, bind(), Gateway}) ->
    {200..503, MediaType :: string(), iodata()}
when
    Requests :: #{binary() => non_neg_integer()}, Gateway :: nats_gateway_monitor_facts:gateway().
answer({<<"/">>, _}, _) ->
    {ok, Page} = file:read_file(filename:join(code:priv_dir(nats_gateway), "monitor.html")),
    {200, "text/html; charset=utf-8", Page};
answer({<<"/varz">>, _}, {Requests, Bind, Gateway}) ->
    json(200, nats_gateway_monitor_facts:varz(Requests, Bind, Gateway));
answer({<<"/connz">>, Query}, {_, _, Gateway}) ->
    json(200, nats_gateway_monitor_facts:connz(connz_options(Query), Gateway));
answer({<<"/subsz">>, Query}, {_, _, Gateway}) ->
    json(200, nats_gateway_monitor_facts:subsz(subsz_options(Query), Gateway));
answer({<<"/accountz">>, Query}, {_, _, Gateway}) ->
    Which =
        case Query of
            #{<<"acc">> := Account} when Account =/= <<>> -> {one, Account};
            #{} -> all
        end,
    case nats_gateway_monitor_accounts:accountz(Which, Gateway) of
        {ok, Accounts} ->
            json(200, Accounts);
        {error, no_such_account} ->
            bad_request(<<"Account ", (maps:get(<<"acc">>, Query))/binary, " does not exist">>)
    end;
answer({<<"/accstatz">>, Query}, {_, _, Gateway}) ->
    json(200, nats_gateway_monitor_accounts:accstatz(switch(<<"unused">>, Query), Gateway));
%% There is no JetStream whose health could be asked for, or left out.
answer({<<"/healthz">>, _}, {_, _, Gateway}) ->
    {Status, Health} = nats_gateway_monitor_facts:healthz(Gateway),
    json(Status, Health);
answer({<<"/metrics">>, _}, {_, _, Gateway}) ->
    Families = nats_gateway_monitor_metrics:families(Gateway),
    {200, "text/plain; version=0.0.4; charset=utf-8", nats_gateway_monitor_prometheus:text(Families)};
answer({_, _}, _) ->
    {404, "text/plain", <<"nothing is here: / lists what there is\n">>}.

json(Status, Term) -> {Status, ?JSON, [nats_gateway_nif:json(Term), $\n]}.

page(Query) ->
    #{
        offset => integer(<<"offset">>, 0, Query),
        limit =>
            case integer(<<"limit">>, ?LIMIT, Query) of
                0 -> ?LIMIT;
                Limit -> min(?MAX_LIMIT, Limit)
            end
    }.

%% What the parameters mean; throws `{bad_request, Text}'.
-spec subsz_options(#{binary() => binary()}) -> map().
subsz_options(Query) ->
    Filters = [
        {Key, Value}
     || {Key, Name} <- [{test, <<"test">>}, {acc, <<"account">>}], #{Name := Value} <- [Query]
    ],
    maps:merge(maps:merge(page(Query), maps:from_list(Filters)), #{subs => switch(<<"subs">>, Query)}).

-spec connz_options(#{binary() => binary()}) -> nats_gateway_monitor_facts:connz_options().
connz_options(Query) ->
    Filters = [
        {Key, Value}
     || {Key, Name} <- [{user, <<"user">>}, {acc, <<"acc">>}, {filter_subject, <<"filter_subject">>}],
        #{Name := Value} <- [Query]
    ],
    Cid = [{cid, integer(<<"cid">>, 0, Query)} || is_map_key(<<"cid">>, Query)],
    maps:merge(maps:merge(page(Query), maps:from_list(Filters ++ Cid)), #{
        sort => one_of(<<"sort">>, sorts(), cid, Query),
        state => state(one_of(<<"state">>, [open, closed, any, all], open, Query)),
        subs => subs(maps:get(<<"subs">>, Query, <<"0">>)),
        auth => switch(<<"auth">>, Query)
    }).

sorts() ->
    [
        cid, start, subs, pending, msgs_to, msgs_from, bytes_to, bytes_from, last, idle, uptime, rtt, stop, reason
    ].

state(all) -> any;
state(State) -> State.

subs(<<"detail">>) -> detail;
subs(Value) ->
    case is_on(<<"subs">>, Value) of
        true -> subjects;
        false -> none
    end.

switch(Name, Query) -> is_on(Name, maps:get(Name, Query, <<"0">>)).

is_on(_, Value) when Value =:= <<"1">>; Value =:= <<"true">> -> true;
is_on(_, Value) when Value =:= <<"0">>; Value =:= <<"false">>; Value =:= <<>> -> false;
is_on(Name, _) -> bad_request(<<Name/binary, ": 1, true, 0 or false">>).

one_of(Name, Known, Default, Query) ->
    case Query of
        #{Name := <<>>} ->
            Default;
        #{Name := Value} ->
            case [Each || Each <- Known, atom_to_binary(Each) =:= Value] of
                [Each] ->
                    Each;
                [] ->
                    Names = lists:join(<<", ">>, [atom_to_binary(Each) || Each <- Known]),
                    bad_request(iolist_to_binary([Name, <<": one of ">>, Names]))
            end;
        #{} ->
            Default
    end.

integer(Name, Default, Query) ->
    case Query of
        #{Name := Text} ->
            try binary_to_integer(Text) of
                Value when Value >= 0 -> Value;
                _ -> bad_request(<<Name/binary, ": a whole number, 0 or more">>)
            catch
                error:badarg -> bad_request(<<Name/binary, ": a whole number, 0 or more">>)
            end;
        #{} ->
            Default
    end.
