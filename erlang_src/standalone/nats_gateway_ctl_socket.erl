%% The socket of `nats_gateway ctl': a unix-domain socket of which only the user of this process, and
%% root, get answers.
%%
%% A request is the words of the command, with a zero between them. The answer is the exit status, one
%% byte, and the text. Both are one packet with its length in four bytes.
-module(nats_gateway_ctl_socket).

-behaviour(gen_server).

-export([open/2]).
-export([change/3]).
-export([request/2]).
-export([explain/1]).
-export([start_link/2]).
-export([init/1, handle_call/3, handle_cast/2, terminate/2]).

-include_lib("kernel/include/file.hrl").
-include_lib("kernel/include/logger.hrl").

-export_type([run/0]).

-type path() :: undefined | binary().

%% What answers the words of a command. It must be a function that is exported: the socket is opened
%% again with it if its process crashes.
-type run() :: fun(([binary()]) -> {Status :: byte(), Text :: iodata()}).

-define(SUPERVISOR, nats_gateway_sup).

%% So many commands are answered at a time.
-define(ACCEPTORS, 8).
-define(MAX_REQUEST, 65536).
-define(REQUEST_MS, 5000).
-define(CONNECT_MS, 2000).
-define(SEND_MS, 10000).
-define(NO_DESCRIPTOR_PAUSE_MS, 200).

-define(S_IFMT, 8#170000).
-define(S_IFSOCK, 8#140000).
-define(ONLY_OWNER, 8#600).

%% Linux: getsockopt(2), unix(7). It has the process, user and group of the other side.
-define(SOL_SOCKET, 1).
-define(SO_PEERCRED, 17).
-define(PEERCRED_SIZE, 12).

-type problem() :: in_use | no_socket | inet:posix().

-spec open(path(), run()) -> ok | {error, problem()}.
open(undefined, _) ->
    ok;
open(Path, Run) ->
    Child = #{id => id(Path), start => {?MODULE, start_link, [Path, Run]}},
    case supervisor:start_child(?SUPERVISOR, Child) of
        {ok, _} -> ok;
        {error, {{shutdown, {listen, Problem}}, _}} -> {error, Problem}
    end.

%% At a reload. If the new one cannot be opened, the old one stays.
-spec change(Old :: path(), New :: path(), run()) -> ok | {error, problem()}.
change(Same, Same, _) ->
    ok;
change(Old, New, Run) ->
    case open(New, Run) of
        ok -> close(Old);
        Error -> Error
    end.

close(undefined) ->
    ok;
close(Path) ->
    ok = supervisor:terminate_child(?SUPERVISOR, id(Path)),
    supervisor:delete_child(?SUPERVISOR, id(Path)).

id(Path) -> {?MODULE, Path}.

-spec start_link(Path :: binary(), run()) -> gen_server:start_ret().
start_link(Path, Run) -> gen_server:start_link(?MODULE, {Path, Run}, []).

-spec explain(problem() | term()) -> iodata().
explain(in_use) -> "another gateway answers there";
explain(no_socket) -> "there is a file that is no socket";
explain(Reason) when is_atom(Reason) -> inet:format_error(Reason);
explain(Reason) -> io_lib:format("~0p", [Reason]).

%% The side of `nats_gateway ctl'.
-spec request(Path :: binary(), [binary()]) ->
    {ok, Status :: byte(), Text :: binary()} | {error, inet:posix() | closed | timeout}.
request(Path, Words) ->
    case gen_tcp:connect({local, Path}, 0, [local | options()], ?CONNECT_MS) of
        {ok, Socket} ->
            Answer = ask(Socket, lists:join(0, Words)),
            ok = gen_tcp:close(Socket),
            Answer;
        {error, Reason} ->
            {error, Reason}
    end.

ask(Socket, Request) ->
    case gen_tcp:send(Socket, Request) of
        ok ->
            case gen_tcp:recv(Socket, 0) of
                {ok, <<Status, Text/binary>>} -> {ok, Status, Text};
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

options() -> [binary, {packet, 4}, {active, false}, {send_timeout, ?SEND_MS}].

%% -------------------------------------------------------------------------------------------

-record(server, {
    path :: binary(),
    socket :: gen_tcp:socket(),
    %% of the file: another gateway may have made another one in its place
    inode :: non_neg_integer()
}).

init({Path, Run}) ->
    _ = process_flag(trap_exit, true),
    case make_way(Path) of
        ok -> listen(Path, Run);
        {error, Problem} -> {stop, {shutdown, {listen, Problem}}}
    end.

%% What a gateway has left behind that was killed.
make_way(Path) ->
    case file:read_link_info(Path, [raw]) of
        {ok, #file_info{mode = Mode}} when Mode band ?S_IFMT =/= ?S_IFSOCK -> {error, no_socket};
        {ok, _} -> remove_unless_answered(Path);
        {error, enoent} -> ok;
        {error, Reason} -> {error, Reason}
    end.

remove_unless_answered(Path) ->
    case gen_tcp:connect({local, Path}, 0, [local | options()], ?CONNECT_MS) of
        {ok, Socket} ->
            ok = gen_tcp:close(Socket),
            {error, in_use};
        {error, econnrefused} ->
            file:delete(Path, [raw]);
        {error, Reason} ->
            {error, Reason}
    end.

listen(Path, Run) ->
    Options = [local, {ifaddr, {local, Path}}, {packet_size, ?MAX_REQUEST} | options()],
    case gen_tcp:listen(0, Options) of
        {ok, Socket} ->
            ok = file:change_mode(Path, ?ONLY_OWNER),
            {ok, #file_info{inode = Inode, uid = Uid}} = file:read_link_info(Path, [raw]),
            %% They are not linked to this process: a command that closes this socket is answered.
            Accept = fun() -> accept(Socket, Uid, Run) end,
            lists:foreach(fun(_) -> proc_lib:spawn(Accept) end, lists:seq(1, ?ACCEPTORS)),
            {ok, #server{path = Path, socket = Socket, inode = Inode}};
        {error, Reason} ->
            {stop, {shutdown, {listen, Reason}}}
    end.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.

terminate(_, #server{path = Path, socket = Socket, inode = Inode}) ->
    _ =
        case file:read_link_info(Path, [raw]) of
            {ok, #file_info{inode = Inode}} -> file:delete(Path, [raw]);
            _ -> ok
        end,
    gen_tcp:close(Socket).

accept(Listening, Uid, Run) ->
    case gen_tcp:accept(Listening) of
        {ok, Socket} ->
            _ = is_allowed(Socket, Uid) andalso serve(Socket, Run),
            ok = gen_tcp:close(Socket),
            accept(Listening, Uid, Run);
        {error, Reason} when Reason =:= emfile; Reason =:= enfile; Reason =:= system_limit ->
            timer:sleep(?NO_DESCRIPTOR_PAUSE_MS),
            accept(Listening, Uid, Run);
        {error, _} ->
            ok
    end.

%% The mode of the file comes a moment after the file.
is_allowed(Socket, Uid) ->
    case inet:getopts(Socket, [{raw, ?SOL_SOCKET, ?SO_PEERCRED, ?PEERCRED_SIZE}]) of
        {ok, [{raw, _, _, <<_:32/native, Peer:32/native, _:32>>}]} -> Peer =:= 0 orelse Peer =:= Uid;
        _ -> false
    end.

serve(Socket, Run) ->
    case gen_tcp:recv(Socket, 0, ?REQUEST_MS) of
        {ok, Request} ->
            {Status, Text} = run(binary:split(Request, <<0>>, [global]), Run),
            gen_tcp:send(Socket, [Status, Text]);
        {error, _} ->
            ok
    end.

run(Words, Run) ->
    try
        Run(Words)
    catch
        Class:Reason:Stack ->
            Caught = nats_gateway_guard:caught(Class, Reason, Stack),
            ?LOG_ERROR(Caught#{msg => control_failed, command => hd(Words)}),
            {1, <<"the gateway could not do it: its log says why">>}
    end.
